"""Certify a data set: calibrate on other images, one interval per image, method and patch size."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pycc.attack import PatchAttack
from pycc.certify.attacked import attacked_rows
from pycc.certify.calibration import Calibration
from pycc.certify.maps import certified_map, check_field
from pycc.certify.methods.base import (
    CalibrationMaps,
    Certificate,
    CertifiedImage,
    chosen,
)
from pycc.certify.results import CLEAN, CertifyRun, summarise
from pycc.checks import naming
from pycc.counters import identity, like_of
from pycc.data import mean_colour, quantize
from pycc.data.dataset import Dataset, data_fingerprint
from pycc.defense.mixture import parts_of
from pycc.defense.region import Regional
from pycc.grid import cell_weight
from pycc.ranks import Ranks
from pycc.runs import Record, Run, open_or_resume, sharded, write_json
from pycc.types import Counter, Interval, Progress, Sample

KEY = ("image", "method", "patch_size")
PATCH_SIZES = (20, 40, 81, 163)
"""The published sides of patches, pixels."""
CALIBRATION = "calibration.json"

Methods = str | Certificate | Sequence[str | Certificate]
"""One certificate method or several, each by its name or with its settings."""


def calibrate(
    counter: Counter,
    samples: Sequence[Sample],
    *,
    method: Methods = "masked",
    patch_sizes: Sequence[int] = PATCH_SIZES,
    source: str | None = None,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
) -> Calibration:
    """Fix the numbers that certificate methods need, on images other than the certified ones.

    Args:
        counter: in eval mode, with cells that are not negative (``pycc.defense.clipped``).
        samples: calibration images; annotated if a method chooses allowances on them. May be empty
            if all numbers are settings of the methods.
        method: ``masked`` and so on, or several methods.
        patch_sizes: sides of square patches, pixels.
        source: the name of the data (default: that of the data set).
        progress: is called for every image.
        ranks: the processes of a run; the first calibrates, and all return the same.

    Raises:
        ValueError: no image is left, images without annotation, or a bad counter or number.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
    >>> calibration = calibrate(counter, scenes, patch_sizes=[20])
    >>> calibration.value("allowance", patch_size=20, counter=0) >= 0
    True
    """
    methods, sizes = chosen(method), _sizes(patch_sizes)
    _check_counter(counter, methods)
    name = source or (samples.name if isinstance(samples, Dataset) else "calibration images")
    found = [_calibrate(counter, samples, methods, sizes, name, progress)] if ranks.first else []
    (calibration,) = ranks.gathered(found)
    assert isinstance(calibration, Calibration)
    return calibration


def _calibrate(
    counter: Counter,
    samples: Sequence[Sample],
    methods: Sequence[Certificate],
    patch_sizes: Sequence[int],
    source: str,
    progress: Progress | None,
) -> Calibration:
    counters, shares = parts_of(counter)
    needs_images = any(method.needs_images for method in methods)
    if needs_images and not len(samples):
        raise ValueError(f"{source}: no image is left to calibrate on; {_remedy(methods)}")
    needs_maps = any(method.uncalibrated for method in methods)
    needs_heads = any(method.needs_heads for method in methods)
    maps: list[list[Tensor]] = [[] for _ in counters]
    truths: list[float] = []
    shapes: list[tuple[int, int]] = []
    colours: list[Tensor] = []
    for number, sample in enumerate(samples if needs_images else ()):
        if progress is not None:
            progress(number, len(samples), f"calibrating on {sample.name}")
        if needs_maps:
            for part, kept in zip(counters, maps, strict=True):
                kept.append(certified_map(part, sample)[0].cpu())
        if needs_heads:
            truths.append(float(sample.count))
        shapes.append((sample.image.shape[1], sample.image.shape[2]))
        colours.append(sample.image.mean((1, 2), keepdim=True))
    images = CalibrationMaps(
        source, counters, shares, tuple(map(tuple, maps)), tuple(truths), tuple(shapes)
    )
    return Calibration(
        tuple(number for method in methods for number in method.calibrate(images, patch_sizes)),
        mean_colour(colours) if any(method.needs_fill for method in methods) else None,
        data_fingerprint(samples) if needs_images else None,
    )


def _remedy(methods: Sequence[Certificate]) -> str:
    """What to give if no image is left: other images, or the numbers that they would fix."""
    others = "give other images than the certified ones"
    if any(method.needs_fill for method in methods):  # the colour of what is hidden is no setting
        return others
    numbers = " and ".join(name for method in methods for name in method.uncalibrated)
    return f"{others}, or the numbers that they fix: {numbers}"


def run(
    counter: Counter,
    samples: Sequence[Sample],
    *,
    calibration: Calibration,
    method: Methods = "masked",
    patch_sizes: Sequence[int] = PATCH_SIZES,
    attack: PatchAttack | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
    settings: Mapping[str, object] | None = None,
    command: Sequence[str] = (),
    machine: Sequence[str] = (),
) -> CertifyRun:
    """Certify every sample: one interval per image, method and patch size.

    Args:
        counter: in eval mode, with cells that are not negative (``pycc.defense.clipped``). Of an
            ensemble (``pycc.defense.mixed``) each counter is masked by itself.
        samples: the images. Inside a region of interest cells count in proportion.
        calibration: from ``calibrate`` with the same counter, methods and patch sizes.
        method: ``masked`` and so on, or several methods.
        patch_sizes: sides of square patches, pixels.
        attack: attack the defended counters too (``adaptive_attack``), with patches of all sizes
            that push counts up and down; the summary counts those that leave their interval.
        seed: key of all randomness.
        out: run folder, new or empty; None keeps the results in memory.
        resume: continue the run in ``out``.
        progress: is called for every image, in images.
        ranks: the processes of the run; they share the images.
        settings, command, machine: for the manifest, as of ``pycc.runs.open_or_resume``.

    Raises:
        ValueError: bad input, before anything is written; for a resumed run settings, data,
            calibration or weights that are not those of its manifest.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", shape=(96, 128), limit=1)
    >>> from pycc.certify import Masked
    >>> calibration = calibrate(counter, [], method=Masked(allowance=2.0), patch_sizes=[20])
    >>> result = run(counter, scenes, patch_sizes=[20], calibration=calibration)
    >>> [row.patch_size for row in result.rows]
    [20]
    """
    methods, sizes = chosen(method), _sizes(patch_sizes)
    check(counter, samples, method=methods, patch_sizes=sizes, attack=attack)
    _check_calibration(counter, methods, sizes, calibration)

    def opened() -> Run:
        fingerprints: dict[str, object] = {
            "weights": identity(counter), "data": data_fingerprint(samples)
        }  # fmt: skip
        if calibration.data is not None:
            fingerprints["calibration"] = calibration.data
        return open_or_resume(
            out, kind="certify", command=command, fingerprints=fingerprints, key=KEY,
            resume=resume, machine=machine,
            settings={
                **(settings or {}),
                "methods": [one.settings() for one in methods],
                "patch_sizes": sizes,
                "seed": seed,
                "attack": None if attack is None else {"name": attack.name, **attack.settings()},
                "calibration": [number.json() for number in calibration.numbers],
                "fill": calibration.fill,
            },
        )  # fmt: skip

    with sharded(opened, out, ranks, KEY) as shards:
        file = None if shards.main is None else shards.main.file(CALIBRATION)
        if file is not None:
            write_json(file, calibration.json())
        work = _Work(counter, methods, sizes, calibration, seed, len(samples), progress)
        work.check_field(samples)
        for index in ranks.share(range(len(samples))):
            work.certify(index, samples[index], shards.mine)
        shards.merge()
        log = shards.main or shards.mine
        rows = () if attack is None else attacked_rows(
            attack, methods, sizes, counter, calibration, samples, log, seed=seed,
            progress=progress, ranks=ranks,
        )  # fmt: skip
        summary = summarise(log.ordered(), calibration, rows)
        if shards.main is not None:
            log.finish(summary.json())
    return CertifyRun(summary, tuple(log.ordered()), None if out is None else Path(out))


def check(
    counter: Counter,
    samples: Sequence[Sample],
    *,
    method: Methods,
    patch_sizes: Sequence[int],
    attack: PatchAttack | None = None,
) -> None:
    """Check that a run can certify these samples: what would fail later fails at once.

    ValueError for a counter without the bounded receptive field that a method needs, a patch or a
    number of kept pixels that does not fit an image, and an attack on images with a region of
    interest.
    """
    methods, largest = chosen(method), max(_sizes(patch_sizes))
    _check_counter(counter, methods)
    for sample in samples:
        shape = sample.image.shape[1], sample.image.shape[2]
        if sample.roi is not None and attack is not None:
            raise ValueError(
                f"{sample.name}: an attack needs images that count as a whole, this one has a "
                "region of interest: a defended counter would differ from image to image"
            )
        if largest > min(shape):
            raise ValueError(
                f"{sample.name}: a patch of {largest} pixels does not fit into "
                f"{shape[0]}x{shape[1]}"
            )
        for one in methods:
            one.check_image(sample.name, shape)


def _check_counter(counter: Counter, methods: Sequence[Certificate]) -> None:
    bounded = all(part.receptive_field is not None for part in parts_of(counter)[0])
    for method in methods:
        if method.from_map and not bounded:
            raise ValueError(
                f"{method.name}: the counter must have a bounded receptive field, got none: a "
                "patch can change every cell; count isolated tiles (pycc.defense.tiled, --tile)"
            )


def _check_calibration(
    counter: Counter,
    methods: Sequence[Certificate],
    patch_sizes: Sequence[int],
    calibration: Calibration,
) -> None:
    """ValueError unless all is there that the methods need, and as it is given."""
    for method in methods:
        if method.needs_fill:
            _ = calibration.colour
        for needed in method.needed_numbers(patch_sizes, len(parts_of(counter)[0])):
            value = calibration.value(needed.kind, needed.patch_size, needed.counter)
            if needed.given is not None and value != needed.given:
                raise ValueError(
                    f"{method.name}: the {needed.kind} is given as {needed.given} people and "
                    f"calibrated as {value}; calibrate with the same methods"
                )


def _sizes(patch_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(dict.fromkeys(patch_sizes))
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"certify: patch_sizes must be at least 1 pixel each, got {min(sizes, default='none')}"
        )
    return sizes


class _Work:
    """Certifying one image after another."""

    def __init__(
        self,
        counter: Counter,
        methods: Sequence[Certificate],
        patch_sizes: Sequence[int],
        calibration: Calibration,
        seed: int,
        images: int,
        progress: Progress | None,
    ) -> None:
        self._counter, self._calibration, self._seed = counter, calibration, seed
        self._jobs = [(method, size) for method in methods for size in patch_sizes]
        self._intervals = images * len(patch_sizes)
        self._images, self._progress = images, progress

    def check_field(self, samples: Sequence[Sample]) -> None:
        """Check the declared receptive field on the first image, if a method relies on it."""
        sizes = [patch_size for method, patch_size in self._jobs if method.from_map]
        if not sizes or not len(samples):
            return
        first = samples[0]
        with naming(first.name, first.image.shape):
            image = quantize(first.image).to(like_of(self._counter))
            for part in parts_of(self._counter)[0]:
                check_field(part, image, min(sizes))

    def certify(self, index: int, sample: Sample, log: Run) -> None:
        """Add the records of an image that ``log`` does not hold yet."""
        jobs = [
            (method, patch_size)
            for method, patch_size in self._jobs
            if not log.has(image=sample.name, method=method.name, patch_size=patch_size)
        ]
        if not jobs and log.has(image=sample.name, method=CLEAN, patch_size=None):
            return
        if self._progress is not None:
            self._progress(index, self._images, f"certifying {sample.name}")
        start = time.perf_counter()
        counters, shares = parts_of(self._counter)
        parts = tuple(certified_map(part, sample) for part in counters)
        density = torch.stack([s * part for s, part in zip(shares, parts, strict=True)]).sum(0)
        forward = time.perf_counter() - start
        base: Record = {
            "index": index,
            "image": sample.name,
            "truth": float(sample.count) if sample.annotated else None,
            "height": sample.image.shape[1],
            "width": sample.image.shape[2],
        }
        count = float(density.double().sum())
        log.append(
            {**base, "method": CLEAN, "patch_size": None, "count": count, "seconds": forward}
        )
        image = CertifiedImage(
            quantize(sample.image).to(like_of(self._counter)), density, parts, index,
            self._intervals, self._seed, self._inner_progress(index, sample.name),
        )  # fmt: skip
        inside = self._counter
        if sample.roi is not None:  # methods that count other images count in the region too
            weight = cell_weight(sample.roi, density.shape[-2:], self._counter.stride)
            inside = Regional(self._counter, weight)
        for method, patch_size in jobs:
            start = time.perf_counter()
            victim = self._counter if method.from_map else inside
            with naming(sample.name, sample.image.shape):
                interval = method.interval(victim, image, patch_size, self._calibration)
            spent = time.perf_counter() - start + (forward if method.from_map else 0.0)
            log.append({
                **base, "method": method.name, "patch_size": patch_size, **_record(interval),
                "seconds": spent,
            })  # fmt: skip

    def _inner_progress(self, index: int, name: str) -> Progress | None:
        """Progress of the draws or pairs of masks of an image, in images."""
        if self._progress is None:
            return None
        shown, images = self._progress, self._images

        def report(done: float, total: float, text: str, /) -> None:
            label = f"certifying {name}, {done:,} of {total:,} {text}"
            shown(index + done / max(total, 1), images, label)

        return report


def _record(interval: Interval) -> Record:
    return {
        "low": interval.low,
        "high": None if interval.high == float("inf") else interval.high,
        "count": interval.count,
        "deterministic": interval.deterministic,
        "confidence": interval.confidence,
        "vacuous": interval.vacuous,
        "reason": interval.reason,
    }
