"""The command ``python -m pycc.attack``: attack a counter on annotated images."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pycc import cli, data, defense, models, report, runs
from pycc.attack.base import attacks
from pycc.attack.engine import run as run_attack
from pycc.attack.engine import transfer as run_transfer
from pycc.attack.methods.pgd import PGD
from pycc.attack.physical.photo import photo_table, photographed
from pycc.attack.physical.printing import print_kit
from pycc.attack.settings import QUICK, Settings, chosen, complete, names
from pycc.data.dataset import builtin as builtin_data
from pycc.data.reading import Reading
from pycc.ranks import Ranks, own_device, ranks
from pycc.types import Counter


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's); returns its exit code."""
    command = _Command()
    return cli.command(
        command.work, sys.argv[1:] if argv is None else argv, stopped=command.how_to_resume
    )


class _Command:
    """One call of the command."""

    def __init__(self) -> None:
        self.argv: list[str] = []
        self.folder: Path | None = None
        self.note = ""

    def how_to_resume(self) -> str:
        """What to say when a run is interrupted."""
        if self.folder is None or not (self.folder / runs.MANIFEST).exists():
            return ""
        return f"; continue with: python -m pycc.attack --resume {self.folder}"

    def work(self, argv: list[str]) -> int:
        """Everything: read the flags, check the input, attack, draw, print the table."""
        self.argv = argv
        given = _given(argv)
        if "print" in given:
            return self._print(given)
        if "photo" in given:
            return self._photo(given)
        for name in ("width_mm", "dpi"):
            if name in given:
                raise ValueError(f"--{name.replace('_', '-')}: expected --print PATCH beside it")
        stored = None
        if "resume" in given:
            stored = runs.read_flags(given["resume"], "attack")
        with ranks(own_device(cli.device_of(given, stored))) as processes:
            return self._attack(given, processes)

    def _attack(self, given: dict[str, Any], processes: Ranks) -> int:
        control = {name: given.pop(name, None) for name in ("out", "resume")}
        settings = self._settings(given, control["resume"], control["out"], processes)
        attacks_wanted = chosen(settings)
        options: dict[str, Any] = {}
        kept: dict[str, Any] = {"flags": settings}
        if settings["pgd_steps"] < 0:
            raise ValueError(f"--pgd-steps must be at least 0, got {settings['pgd_steps']}")
        if settings["pgd_steps"]:
            options["pgd"] = PGD(settings["pgd_epsilon"], settings["pgd_steps"])
        else:
            options["pgd"] = None
        if settings["transfer"]:
            victims = _several(settings["transfer"], settings)
        else:
            counter: Counter = _counter(settings["weights"], settings)
            fill = _fill(settings)
            if fill is not None:
                counter = defense.ablated(
                    counter, settings["ablate"], draws=settings["ablate_draws"], fill=fill,
                    unit=settings["ablate_unit"], seed=settings["seed"],
                )  # fmt: skip
                kept["fill"] = fill
            options["surrogates"] = _several(settings["substitutes"], settings)
        samples = _samples(settings, settings["split"], settings["limit"])
        if settings["attack"] != "none" and attacks[settings["attack"]].is_universal:
            options["train"] = _samples(settings, settings["train_split"], settings["train_limit"])
        assert self.folder is not None
        if self.note and processes.first:
            cli.say(f"note: {self.note}")
        progress = cli.Progress("megapixels")
        try:
            options |= {
                "seed": settings["seed"],
                "seeds": settings["seeds"],
                "combine": settings["combine"],
                "out": self.folder,
                "resume": control["resume"] is not None,
                "save_images": settings["save_images"],
                "save_maps": settings["pictures"],
                "progress": progress if processes.first else None,
                "ranks": processes,
                "settings": kept,
                "command": self.argv,
            }
            if settings["transfer"]:
                done = run_transfer(victims, samples, attacks_wanted, **options)
            else:
                done = run_attack(counter, samples, attacks_wanted, **options)
        finally:
            progress.close()
        if not processes.first:
            return cli.DONE
        print(report.table(done.summary, published=_published(settings, samples)))
        outcomes = done.summary.get("checks", [])
        if outcomes:
            print(report.checks_table(outcomes))
        print(f"run folder: {self.folder}", flush=True)
        if settings["pictures"]:
            self._draw(self.folder)
        failed = any(outcome["verdict"] == "fail" for outcome in outcomes)
        return cli.FAILED if failed and settings["gates"] else cli.DONE

    def _print(self, given: dict[str, Any]) -> int:
        """A kit to print a patch at its true size."""
        _only(given, "--print", {"print", "width_mm", "dpi", "out"})
        if "width_mm" not in given:
            raise ValueError("--print: expected --width-mm too, got none")
        out = given.get("out") or f"runs/kit-{_now()}"
        kit = print_kit(
            given["print"], out, width_mm=given["width_mm"], dpi=given.get("dpi", 300.0)
        )
        print(
            f"{kit.width_mm:.1f} x {kit.height_mm:.1f} mm at {kit.dpi:g} dpi, "
            f"{kit.pixels_per_inch:.1f} patch pixels an inch: {kit.patch}, {kit.page}",
            flush=True,
        )
        return cli.DONE

    def _photo(self, given: dict[str, Any]) -> int:
        """Photographs with and without the printed patch, paired by name and counted."""
        allowed = {"photo", "out", "weights", "model", "option", "device", "threads"}
        allowed |= asdict(Reading()).keys()
        _only(given, "--photo", allowed)
        if "weights" not in given:
            raise ValueError("--photo: expected --weights too, got none")
        settings = {"model": None, "option": {}, "device": "cpu", **asdict(Reading())} | given
        settings["threads"] = cli.set_threads(given.get("threads"))
        counter = _counter(settings["weights"], settings)
        out = given.get("out") or f"runs/photo-{_now()}"
        progress = cli.Progress("photos")
        try:
            done = photographed(
                counter,
                *given["photo"],
                out=out,
                bit_depth=settings["bit_depth"],
                max_image_pixels=settings["max_image_pixels"],
                progress=progress,
                settings={"flags": settings},
                command=self.argv,
            )
        finally:
            progress.close()
        print(photo_table(done.summary, done.records))
        print(f"run folder: {out}", flush=True)
        return cli.DONE

    def _draw(self, folder: Path) -> None:
        progress = cli.Progress("pictures")
        try:
            report.draw(folder, drawn=lambda done, total: progress(done, total, "drawing"))
        finally:
            progress.close()

    def _settings(
        self, given: dict[str, Any], resume: str | None, out: str | None, processes: Ranks
    ) -> dict[str, Any]:
        """All settings of the run, and its folder, checked as far as nothing needs loading."""
        if resume is None:
            settings, self.note = complete(given)
            settings["threads"] = cli.set_threads(settings["threads"])
            if out is None:
                if processes.world > 1:
                    raise ValueError("torchrun: processes meet in a run folder, give --out")
                out = f"runs/attack-{_now()}"
            if processes.first:
                runs.check_new(out)
            self.folder = Path(out)
            return settings
        if out is not None and Path(out).absolute() != Path(resume).absolute():
            raise ValueError(f"--resume {resume}: expected no other --out, got {out}")
        self.folder = Path(resume)
        stored = runs.read_flags(resume, "attack")
        if stored.keys() != names(stored.get("attack")):
            raise ValueError(
                f"--resume {resume}: expected the settings of this version of the command, "
                "got others in its manifest"
            )
        cli.check_same(stored, given, resume)
        cli.set_threads(stored["threads"])  # before the environments are compared
        return stored


def _now() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def _only(given: Mapping[str, Any], mode: str, allowed: set[str]) -> None:
    """ValueError for a flag that a mode of the command has no use for."""
    for name in given:
        if name not in allowed:
            raise ValueError(f"{mode}: expected no --{name.replace('_', '-')} beside it")


def _parser(attack: str | None) -> cli.Parser:
    """The flags of the command and, unless ``attack`` is None, of this attack."""
    parser = cli.Parser(
        prog="python -m pycc.attack",
        description="Attack a crowd counter with adversarial patches and print what it then "
        "counts, beside patches of the same size and place that nobody optimised.",
        epilog="Without --data, on the built-in scenes, the defaults are "
        + ", ".join(f"{name} {_short(value)}" for name, value in QUICK.items())
        + f". Exit codes: 0 done, 1 a check failed, {cli.ENDS}.",
    )
    parser.add_argument(
        "--attack", choices=[*attacks.names(), "none"], help="none: count the clean images only"
    )
    cli.add_fields(parser.add_argument_group("input and counter"), Settings)
    control = parser.add_argument_group("run")
    control.add_argument("--out", metavar="RUN", help="run folder (default: runs/attack-TIME)")
    control.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    physical = parser.add_argument_group("physical mode, in place of an attack")
    physical.add_argument(
        "--print", metavar="PATCH", help="make a kit to print this patch: PNG and PDF"
    )
    physical.add_argument(
        "--width-mm", type=float, metavar="MM", help="true width of the printed patch"
    )
    physical.add_argument("--dpi", type=float, help="dots an inch of the printer (default: 300)")
    physical.add_argument(
        "--photo",
        nargs=2,
        metavar=("CLEAN", "ATTACKED"),
        help="count photographs in two folders, paired by name, without and with the patch",
    )
    if attack is not None:
        cli.add_fields(parser.add_argument_group(f"attack {attack}"), attacks[attack])
    return parser


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _given(argv: list[str]) -> dict[str, Any]:
    """The flags that were given, by name; which flags there are depends on the attack."""
    first = cli.Parser(add_help=False)
    first.add_argument("--attack")
    first.add_argument("--resume")
    known = vars(first.parse_known_args(argv)[0])
    attack = known.get("attack")
    if attack is None and "resume" in known:
        attack = runs.read_flags(known["resume"], "attack").get("attack")
    if attack is None:
        attack = attacks.names()[0]
    given = vars(_parser(attack if attack in attacks.names() else None).parse_args(argv))
    if "option" in given:
        given["option"] = dict(given["option"])
    weights = models.builtin()
    builtins = {"data": builtin_data.names(), "weights": weights, "init": ["noise"]}
    for name, known_names in builtins.items():
        if name in given:
            given[name] = _whole_path(given[name], known_names)
    for name in ("substitutes", "transfer"):
        if name in given:
            given[name] = [_whole_path(value, weights) for value in given[name]]
    return given


def _whole_path(value: str, names: Sequence[str]) -> str:
    """A path from the root, since a resumed run may be started from elsewhere; names stay."""
    return value if value in names else str(Path(value).absolute())


def _counter(weights: str, settings: Mapping[str, Any]) -> models.CounterModel:
    """A counter with its weights, on the run's device."""
    where = own_device(cli.device(settings["device"]))
    try:
        counter = models.load(weights, name=settings["model"], **settings["option"])
    except TypeError as error:
        # The values of options come from the command line as they are.
        raise ValueError(f"--option: {error}") from None
    return counter.to(where)


def _fill(settings: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """The colour of what --ablate hides; None without."""
    if settings["ablate"] is None:
        return None
    if settings["ablate_fill"] is not None:
        return (settings["ablate_fill"],) * 3
    shown = _samples(settings, settings["train_split"], settings["train_limit"])
    return data.mean_colour(shown[index].image for index in range(len(shown)))


def _several(weights: Sequence[str], settings: Mapping[str, Any]) -> dict[str, models.CounterModel]:
    """Counters by the stem of their file; ValueError for two of one name."""
    named: dict[str, models.CounterModel] = {}
    for file in weights:
        name = Path(file).stem
        if name in named:
            raise ValueError(f"--transfer, --substitutes: names must differ, got {name!r} twice")
        named[name] = _counter(file, settings)
    return named


def _samples(settings: Mapping[str, Any], split: str, limit: int | None) -> data.Dataset:
    return data.open(
        settings["data"], split=split, on_error=settings["on_error"], limit=limit,
        annotated=not settings["unannotated"], outside=settings["outside"],
        bit_depth=settings["bit_depth"], max_image_pixels=settings["max_image_pixels"],
    )  # fmt: skip


def _published(
    settings: Mapping[str, Any], samples: data.Dataset
) -> dict[int, tuple[float, float]] | None:
    """What the paper printed for this counter, where the data are those of its table."""
    known = samples.origin == "shanghaitech_a" and settings["split"] == "test"
    known = known and not settings["unannotated"]
    whole = settings["limit"] is None and not settings["transfer"]
    whole = whole and settings["ablate"] is None
    if not (known and whole and settings["attack"] in ("apam", "none")):
        return None
    return report.APAM_TABLE_1.get(settings["model"] or "mcnn")


if __name__ == "__main__":
    raise SystemExit(main())
