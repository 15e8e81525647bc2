"""The command ``python -m pycc.certify``: intervals that no patch can push a count out of."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pycc import cli, data, defense, models, report, runs
from pycc.certify import engine
from pycc.certify.attacked import attacks
from pycc.certify.engine import KEY
from pycc.certify.maps import slack_map
from pycc.certify.methods import ON_MAPS, Calibrated, Plan, caps_of
from pycc.certify.settings import QUICK, Settings, plan_of
from pycc.certify.weakest import Weakest
from pycc.counters import identity
from pycc.data.dataset import builtin as builtin_data
from pycc.data.dataset import data_fingerprint
from pycc.defense.mixture import parts_of
from pycc.defense.windows import window_of
from pycc.ranks import Ranks, own_device, ranks
from pycc.report import certificates
from pycc.runs import Run, open_or_resume, sharded
from pycc.types import Counter, Sample


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's); returns its exit code."""
    return cli.command(_work, sys.argv[1:] if argv is None else argv)


def _parser() -> cli.Parser:
    flags = cli.Parser(
        prog="python -m pycc.certify",
        description="Intervals on the counts of a data set that no patch of the stated sizes, at "
        "any place, of any content, can push them out of.",
        epilog="Without --data, on the built-in scenes, "
        + ", ".join(f"{name} is {value}" for name, value in QUICK.items())
        + f". Exit codes: 0 done, 1 an attacked count left its interval, {cli.ENDS}.",
    )
    cli.add_fields(flags.add_argument_group("certificates"), Settings)
    control = flags.add_argument_group("run")
    control.add_argument("--out", metavar="RUN", help="run folder (default: runs/certify-TIME)")
    control.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    return flags


def _work(argv: list[str]) -> int:
    given = vars(_parser().parse_args(argv))
    out, resume = given.pop("out", None), given.pop("resume", None)
    if "option" in given:
        given["option"] = dict(given["option"])
    inside = builtin_data.names()
    if "also" in given:
        given["also"] = [
            one if one in models.builtin() else str(Path(one).absolute()) for one in given["also"]
        ]
    names_of = {"data": inside, "calibrate_data": inside, "weights": models.builtin()}
    for name, names in names_of.items():
        if given.get(name) is not None and given[name] not in names:
            given[name] = str(Path(given[name]).absolute())
    stored = None if resume is None else runs.read_flags(resume, "certify")
    with ranks(own_device(cli.device_of(given, stored))) as processes:
        return _certify(argv, given, out, resume, processes)


def _certify(
    argv: list[str], given: dict[str, Any], out: str | None, resume: str | None, processes: Ranks
) -> int:
    settings, folder = _settings(given, out, resume, processes)
    plan = plan_of(settings)
    cli.set_threads(settings["threads"])
    counter = _counter(settings)
    samples = _samples(
        settings, settings["data"], settings["split"], settings["limit"],
        annotated=not settings["unannotated"],
    )  # fmt: skip
    _check(settings, plan, samples, counter)

    def opened() -> Run:
        prints = {"weights": identity(counter), "data": data_fingerprint(samples)}
        if _needs_images(plan):
            prints["calibration"] = data_fingerprint(_training(settings, plan))
        return open_or_resume(
            folder, kind="certify", command=argv, settings={"flags": settings},
            fingerprints=prints, key=KEY, resume=resume is not None,
        )  # fmt: skip

    progress = cli.Progress("images")
    try:
        with sharded(opened, folder, processes, KEY) as shards:
            if processes.first:
                _calibrated(settings, plan, counter, samples, folder, progress)
            processes.wait()
            known = _calibrated(settings, plan, counter, samples, folder, progress)
            engine.certify(
                counter, plan, known, samples, shards.mine,
                (lambda d, t, s: progress(d, t, s)) if processes.first else None, processes,
            )  # fmt: skip
            shards.merge()
            log = shards.main or shards.mine
            found: list[dict[str, Any]] = []
            if settings["attack"]:
                found = attacks(
                    settings, plan, partial(_defended, plan, known, counter),
                    Weakest(counter, known), samples, log, folder / "attacks",
                    partial(cli.Progress, "megapixels"), processes,
                )  # fmt: skip
            summary = {
                **engine.summarise(log.ordered()),
                "calibration": _calibration(settings, known),
                "attacks": found,
            }
            if shards.main is not None:
                log.finish(summary)
    finally:
        progress.close()
    failed = any(one["violations"] for one in summary["attacks"])
    if processes.first:
        print(certificates.certificates_table(summary, engine.seconds(log.records)))
        print(f"run folder: {folder}", flush=True)
        _draw(settings, plan, counter, samples, log, folder, known)
    return cli.FAILED if failed else cli.DONE


def _settings(
    given: dict[str, Any], out: str | None, resume: str | None, processes: Ranks
) -> tuple[dict[str, Any], Path]:
    if resume is not None:
        stored = runs.read_flags(resume, "certify")
        cli.check_same(stored, given, resume)
        return {**asdict(Settings()), **stored}, Path(resume)
    settings = asdict(Settings())
    if given.get("data", settings["data"]) == settings["data"]:
        settings |= QUICK
    settings |= given
    if processes.world > 1 and out is None:
        raise ValueError("torchrun: processes meet in a run folder, give --out")
    folder = Path(out or f"runs/certify-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    if processes.first:
        runs.check_new(folder)
    if settings["pictures"] is None:
        reason = report.missing_library()
        settings["pictures"] = reason is None
        if reason is not None:
            cli.say(f"note: {reason}")
    return settings, folder


def _counter(settings: Mapping[str, Any]) -> Counter:
    where = own_device(cli.device(settings["device"]))
    try:
        loaded = models.load(settings["weights"], name=settings["model"], **settings["option"]).to(
            where
        )
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None
    counters = [_usable(loaded, settings)]
    counters += [_usable(models.load(also).to(where), settings) for also in settings["also"]]
    shares = settings["shares"]
    if len(counters) == 1 and shares is None:
        return counters[0]
    return defense.mixed(counters, shares)


def _usable(counter: Counter, settings: Mapping[str, Any]) -> Counter:
    if settings["tile"] is not None:
        counter = defense.tiled(counter, settings["tile"])
    # Networks whose last layer is linear count below nobody; no certificate takes that.
    return defense.clipped(counter)


def _samples(
    settings: Mapping[str, Any], where: str, split: str, limit: int | None, annotated: bool
) -> data.Dataset:
    return data.open(
        where, split=split, on_error=settings["on_error"], limit=limit, annotated=annotated,
        outside=settings["outside"], bit_depth=settings["bit_depth"],
        max_image_pixels=settings["max_image_pixels"],
    )  # fmt: skip


def _calibrates_itself(settings: Mapping[str, Any]) -> bool:
    """Whether numbers come from the certified part itself."""
    elsewhere = settings["calibrate_data"] not in (None, settings["data"])
    return not elsewhere and settings["calibrate_split"] == settings["split"]


def _training(settings: Mapping[str, Any], plan: Plan) -> data.Dataset:
    """The images that numbers are fixed on; without their heads only where nothing needs them."""
    where = settings["calibrate_data"] or settings["data"]
    annotated = plan.needs_heads or where != settings["data"] or not settings["unannotated"]
    return _samples(
        settings, where, settings["calibrate_split"], settings["calibrate_limit"], annotated
    )


def _needs_images(plan: Plan) -> bool:
    """Whether numbers are fixed on calibration images, rather than all given."""
    return (
        plan.needs_heads
        or ("additive" in plan.methods and None in (plan.cap, plan.block_cap))
        or any(name not in ON_MAPS for name in plan.methods)  # the colour of what is hidden
    )


def _check(
    settings: Mapping[str, Any], plan: Plan, samples: Sequence[Sample], counter: Counter
) -> None:
    """What would fail later fails before anything is written."""
    if _needs_images(plan):
        _training(settings, plan)
    if _needs_images(plan) and _calibrates_itself(settings):
        if not settings["force_calibration"]:
            raise ValueError(
                f"--calibrate-split {settings['split']}: expected another part than the certified "
                "one, or --force-calibration"
            )
        warnings.warn("calibrated on the certified images themselves", stacklevel=2)
    bounded = all(one.receptive_field is not None for one in parts_of(counter)[0])
    for name in ON_MAPS:
        if name in plan.methods and not bounded:
            raise ValueError(
                f"--method {name}: a counter without a bounded receptive field has no window that "
                "holds what a patch can change; count isolated tiles (pycc.defense.tiled): --tile"
            )
    for sample in samples:
        if sample.roi is not None and settings["attack"]:
            raise ValueError(
                f"{sample.name}: --attack needs images that count as a whole, this one has a "
                "region of interest: a defended counter would differ from image to image"
            )
        least = min(sample.image.shape[1:])
        if max(plan.patches) > least:
            raise ValueError(
                f"{sample.name}: a patch of {max(plan.patches)} pixels does not fit into "
                f"{sample.image.shape[1]}x{sample.image.shape[2]}"
            )
        if {"quantile", "fixed-masks"} & {*plan.methods} and plan.k > sample.image[0].numel():
            raise ValueError(f"{sample.name}: --k {plan.k} is more than its pixels")


def _calibrated(
    settings: Mapping[str, Any],
    plan: Plan,
    counter: Counter,
    samples: Sequence[Sample],
    folder: Path,
    progress: cli.Progress,
) -> Calibrated:
    """Of a resumed run what it began with; else from images, and kept in the run's folder."""
    file = folder / "calibration.json"
    if file.exists():
        try:
            stored = Calibrated.of(json.loads(file.read_text()))
            stored.check(plan, len(parts_of(counter)[0]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"{file}: no calibration of this run: {error}") from None
        return stored
    where = settings["calibrate_data"] or settings["data"]
    source = f"{Path(where).name}, {settings['calibrate_split']}"
    kept: Sequence[Sample] = ()
    if _needs_images(plan):
        kept = _training(settings, plan)
        if _calibrates_itself(settings):
            source += " (the certified part itself)"
        else:
            kept = data.apart(kept, samples, ("calibration", "certified"))
    known = engine.calibrate(counter, plan, kept, source, lambda d, t, s: progress(d, t, s))
    runs.write_json(file, known.json())
    return known


def _calibration(settings: Mapping[str, Any], known: Calibrated) -> list[dict[str, Any]]:
    found = [
        {"patch": patch, "counter": number, **one.json()}
        for patch, ones in known.allowances.items()
        for number, one in enumerate(ones)
    ]
    caps = (known.cap, known.block_cap)
    return found + [{"patch": None, **one.json()} for one in caps if one is not None]


def _defended(
    plan: Plan, known: Calibrated, counter: Counter, method: str, patch: int
) -> Counter | None:
    """The counter whose interval a method certifies; None where an attack cannot be run on it."""
    if method == "masked":
        counters, shares = parts_of(counter)
        found = [
            defense.masked(one, patch, allowance.value, straight_through=True)
            for one, allowance in zip(counters, known.allowances[patch], strict=True)
        ]
        return found[0] if len(found) == 1 and shares == (1.0,) else defense.mixed(found, shares)
    if method == "additive":
        caps = caps_of(known)
        return defense.clipped(counter, caps.cell, block_cap=caps.block, block=caps.side)
    if method == "two-mask":
        assert known.fill is not None
        return defense.two_mask(
            counter, patch, masks=plan.masks, fill=known.fill, straight_through=True
        )
    if method == "fixed-masks":
        assert known.fill is not None
        return defense.ablated(
            counter, plan.k, draws=plan.draws, fill=known.fill, combine="median", seed=plan.seed
        )
    return None  # the quantile of a law is no function that a gradient reaches


def _draw(
    settings: Mapping[str, Any],
    plan: Plan,
    counter: Counter,
    samples: Sequence[Sample],
    log: Run,
    folder: Path,
    known: Calibrated,
) -> None:
    if not settings["pictures"]:
        return
    (folder / "pictures").mkdir(exist_ok=True)
    certificates.draw_curve(log.summary, folder / "pictures" / "curve.png")
    method, patch = plan.methods[0], plan.patches[min(2, len(plan.patches) - 1)]
    chosen = [r for r in log.records if r["method"] == method and r["patch"] == patch]
    by_name = {sample.name: sample for sample in samples}
    for record in certificates.widest(chosen, 3):
        sample = by_name[record["image"]]
        cells = engine.map_inside(counter, sample).cpu()
        shape = (sample.image.shape[1], sample.image.shape[2])
        if counter.receptive_field is None:
            return
        window = window_of(counter, patch, shape, (cells.shape[1], cells.shape[2]))
        capped = method == "additive"
        heat = slack_map(cells, window, caps_of(known) if capped else None)
        top, left = divmod(int(heat.argmax()), heat.shape[1])
        stride = counter.stride
        heads = "" if record["truth"] is None else f"{record['truth']:.0f} heads, "
        title = (
            f"{sample.name}: {heads}{record['count']:.0f} counted by "
            f"{method}, {record['low']:.0f} to {record['high']:.0f} whatever {patch} pixels show"
        )
        certificates.draw_intervals(
            np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()),
            heat.float().numpy(),
            "people a patch around adds or takes"
            if capped
            else "people in the fullest window around",
            title,
            folder / "pictures" / f"{record['index']:04d}-{method}-{patch}.png",
            (left * stride, top * stride, window[1] * stride, window[0] * stride),
        )


if __name__ == "__main__":
    raise SystemExit(main())
