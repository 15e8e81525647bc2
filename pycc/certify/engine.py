"""Certify a data set: calibrate on other images, one interval an image, method and patch."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pycc.certify.calibration import Calibration, allowance_of, cap_of
from pycc.certify.maps import check_field, map_of
from pycc.certify.methods import ON_MAPS, Calibrated, Plan, Seen, methods
from pycc.checks import naming
from pycc.counters import like_of
from pycc.data import mean_colour, quantize
from pycc.defense.capping import BLOCK
from pycc.defense.mixture import parts_of
from pycc.defense.region import Regional
from pycc.defense.windows import window_of
from pycc.grid import cell_weight, in_region
from pycc.ranks import Ranks
from pycc.runs import Run
from pycc.types import Counter, Interval, Sample

KEY = ("image", "method", "patch")
Progress = Callable[[int, int, str], None]


def calibrate(
    counter: Counter,
    plan: Plan,
    training: Sequence[Sample],
    source: str,
    progress: Progress | None = None,
) -> Calibrated:
    """Allowances, cap and fill that the plan's methods need, from ``training`` images.

    Allowances alone need them annotated: ValueError where they are not.
    """
    known = Calibrated(fill=plan.fill)
    counters, shares = parts_of(counter)
    maps: list[list[Tensor]] = [[] for _ in counters]
    truths: list[float] = []
    shapes: list[tuple[int, int]] = []
    colours: list[Tensor] = []
    wanted = any(name in ON_MAPS for name in plan.methods)
    fixed = dict.fromkeys(plan.patches, plan.allowance)
    asked = wanted and (
        plan.needs_heads or ("additive" in plan.methods and None in (plan.cap, plan.block_cap))
    )
    hidden = plan.fill is None and any(name not in ON_MAPS for name in plan.methods)
    if (asked or hidden) and not len(training):
        raise ValueError(f"{source}: no image is left to calibrate on; {_remedy(plan, hidden)}")
    if asked or hidden:
        for number, sample in enumerate(training):
            if progress is not None:
                progress(number, len(training), f"calibrating on {sample.name}")
            if asked:
                for one, kept in zip(counters, maps, strict=True):
                    kept.append(map_inside(one, sample)[0].cpu())
            if plan.needs_heads:
                truths.append(float(sample.count))
            shapes.append((sample.image.shape[1], sample.image.shape[2]))
            colours.append(sample.image.mean((1, 2), keepdim=True))
    if "masked" in plan.methods:
        for patch in plan.patches:
            found = []
            for one, cells in zip(counters, maps, strict=True):
                value, origin, images = fixed[patch], "given", 0
                if value is None:
                    usable = [
                        (m, t, window_of(one, patch, s, (m.shape[0], m.shape[1])))
                        for m, t, s in zip(cells, truths, shapes, strict=True)
                        if patch <= min(s)
                    ]
                    if not usable:
                        raise ValueError(
                            f"{source}: no image is left to fix an allowance for {patch} pixels "
                            f"on; of {len(truths)} none is large enough: give larger ones "
                            "(--calibrate-data), or --allowance"
                        )
                    value = allowance_of(*(list(column) for column in zip(*usable, strict=True)))
                    origin, images = source, len(usable)
                found.append(Calibration("allowance", value, origin, images))
            known.allowances[patch] = tuple(found)
    if "additive" in plan.methods:
        sums = [
            torch.stack([share * one for share, one in zip(shares, many, strict=True)]).sum(0)
            for many in zip(*maps, strict=True)
        ]
        known.cap, known.block_cap = (
            Calibration(kind, given, "given", 0)
            if given is not None
            else Calibration(kind, cap_of(sums, block=side), source, len(sums))
            for kind, given, side in (("cap", plan.cap, 1), ("block cap", plan.block_cap, BLOCK))
        )
    if hidden:
        known.fill = mean_colour(colours)
    return known


def _remedy(plan: Plan, hidden: bool) -> str:
    """What to give where no image is left: other images, or the numbers that they would fix."""
    given = []
    if plan.needs_heads:
        given.append("--allowance")
    if "additive" in plan.methods:
        given += [f"--{name}" for name, value in (("cap", plan.cap), ("block-cap", plan.block_cap))
                  if value is None]  # fmt: skip
    others = "give other images than the certified ones: --calibrate-data or --calibrate-split"
    if hidden:  # the colour of what is hidden has no flag
        return others
    return f"{others}; or the numbers that they fix: {' and '.join(given)}"


def certify(
    counter: Counter,
    plan: Plan,
    known: Calibrated,
    samples: Sequence[Sample],
    log: Run,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
) -> None:
    """One record an image, method and patch in ``log``; what is there already is left alone.

    Of several processes each certifies its share of the images.
    """
    jobs = list(_jobs(plan))
    if samples and any(name in ON_MAPS for name in plan.methods):
        first = samples[0]
        with naming(first.name, first.image.shape):
            for one in parts_of(counter)[0]:
                check_field(one, quantize(first.image).to(like_of(counter)), min(plan.patches))
    for index in ranks.share(range(len(samples))):
        sample = samples[index]
        todo = [j for j in jobs if not log.has(image=sample.name, method=j[0], patch=j[1])]
        if not todo and log.has(image=sample.name, method="none", patch=None):
            continue
        if progress is not None:
            progress(index, len(samples), f"certifying {sample.name}")
        image = quantize(sample.image).to(like_of(counter))  # as attacks see it
        start = time.perf_counter()
        counters, shares = parts_of(counter)
        parts = tuple(map_inside(one, sample) for one in counters)
        cells = torch.stack([s * one for s, one in zip(shares, parts, strict=True)]).sum(0)
        forward = time.perf_counter() - start
        base = {
            "index": index,
            "image": sample.name,
            "truth": float(sample.count) if sample.annotated else None,
            "height": image.shape[1],
            "width": image.shape[2],
        }
        count = float(cells.double().sum())
        log.append({**base, "method": "none", "patch": None, "count": count, "seconds": forward})
        told = None
        if progress is not None:
            told = partial(_tell, progress, index, len(samples), sample.name)
        seen = Seen(image, cells, parts, index, told)
        # Methods that ask for other images than this one count in its region, whatever they ask.
        inside = counter
        if sample.roi is not None:
            weight = cell_weight(sample.roi, cells.shape[-2:], counter.stride)
            inside = Regional(counter, weight)
        for method, patch in todo:
            start = time.perf_counter()
            asked = counter if method in ON_MAPS else inside
            with naming(sample.name, sample.image.shape):
                found = methods[method](asked, seen, patch, plan, known, len(samples))
            spent = time.perf_counter() - start
            log.append({**base, "method": method, "patch": patch, **_record(found), "seconds":
                        spent + (forward if method in ON_MAPS else 0.0)})  # fmt: skip


def map_inside(counter: Counter, sample: Sample) -> Tensor:
    """The map [1,h,w] of a sample's image as attacks see it, 0 outside its region of interest.

    The region's border cuts cells: these count in proportion. What is said of the counter's own
    map, cell by cell and window by window, holds for this one.
    """
    with naming(sample.name, sample.image.shape):
        cells = map_of(counter, quantize(sample.image).to(like_of(counter)))
    return in_region(cells, sample.roi, counter.stride)


def _tell(progress: Progress, index: int, images: int, name: str, done: int, of: int) -> None:
    progress(index, images, f"certifying {name}, {done:,} of {of:,}")


def _jobs(plan: Plan) -> Iterator[tuple[str, int]]:
    for method in plan.methods:
        for patch in plan.patches:
            yield method, patch


def _record(found: Interval) -> dict[str, Any]:
    return {
        "low": found.low,
        "high": None if found.high == float("inf") else found.high,
        "count": found.count,
        "deterministic": found.deterministic,
        "confidence": found.confidence,
        "vacuous": found.vacuous,
        "reason": found.reason,
    }


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows by method and patch: clean and certified MAE, width, share vacuous.

    A function of the images, counter and plan alone: a resumed run has the same. Times are not.
    Errors are None where images are not annotated, the certified one also where an interval is
    unbounded.
    """
    rows: list[dict[str, Any]] = []
    plain = [r for r in records if r["method"] == "none"]
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["method"] != "none":
            groups.setdefault((record["method"], record["patch"]), []).append(record)
    for (method, patch), found in groups.items():
        bounded = [r for r in found if r["high"] is not None]
        whole = len(bounded) == len(found)
        rows.append(
            {
                "method": method,
                "patch": patch,
                "images": len(found),
                "clean_mae": _error(found, "count"),
                "certified_mae": _error(found, "low", "high") if whole else None,
                "width": _mean(r["high"] - r["low"] for r in bounded) if bounded else None,
                "unbounded": len(found) - len(bounded),
                "vacuous": sum(bool(r["vacuous"]) for r in found) / len(found),
                "reasons": dict(Tally(r["reason"] for r in found if r["reason"]).most_common()),
            }
        )
    return {
        "images": len(plain),
        "undefended_mae": _error(plain, "count"),
        "rows": sorted(rows, key=lambda row: (row["patch"], row["method"])),
    }


def _error(records: Sequence[Mapping[str, Any]], *ends: str) -> float | None:
    """The mean distance, in people, from the truth to the farthest of the named fields."""
    if any(r["truth"] is None for r in records):
        return None
    return _mean(max(abs(r[end] - r["truth"]) for end in ends) for r in records)


def seconds(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """Mean seconds an image by method and patch."""
    times: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record["method"] != "none":
            times.setdefault((record["method"], record["patch"]), []).append(record["seconds"])
    return {key: _mean(found) for key, found in times.items()}


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
