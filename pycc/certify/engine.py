"""Certify a data set: calibrate on other images, one interval per image, method and patch size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from pycc.attack import PatchAttack
from pycc.certify.attacked import attacked_rows
from pycc.certify.calibration import Calibration, with_unit
from pycc.certify.jobs import CertifyJobs
from pycc.certify.maps import certified_map
from pycc.certify.methods.base import CalibrationMaps, Certificate, chosen
from pycc.certify.results import CertifyRun, summarise
from pycc.checks import check_type, check_whole
from pycc.counters import identity
from pycc.data import mean_colour
from pycc.data.dataset import Dataset, check_sample, data_fingerprint
from pycc.defense.mixture import parts_of
from pycc.defense.windows import check_patch
from pycc.ranks import Ranks
from pycc.runs import Run, open_or_resume, sharded, write_json
from pycc.settings import values_of
from pycc.types import (
    Counter,
    Progress,
    Sample,
    check_counter,
    check_sequence,
    check_unique,
    each,
)

KEY = ("image", "method", "patch_size")
PATCH_SIZES = (20, 40, 81, 163)
"""The published sides of patches, pixels."""
CALIBRATION = "calibration.json"

Methods = str | Certificate | Sequence[str | Certificate]
"""One certificate method or several, each given by its name or as an object with its settings."""


def calibrate(
    counter: Counter,
    samples: Sequence[Sample],
    *,
    method: Methods = "completion",
    patch_sizes: Sequence[int] = PATCH_SIZES,
    source: str | None = None,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
) -> Calibration:
    """Fix the numbers and networks that methods need, on images other than the certified ones.

    Args:
        counter: in eval mode, with cells that are not negative (``pycc.defense.clipped``).
        samples: calibration images; annotated if a method chooses allowances on them. May be empty
            if all numbers are settings of the methods.
        method: one of the names in ``certificates``, a method with its settings, or several.
        patch_sizes: sides of square patches, pixels.
        source: the name of the data (default: that of the data set).
        progress: called for every image.
        ranks: the processes of a run; the first calibrates, and all return the same result.

    Raises:
        TypeError: a counter or samples of another type.
        ValueError: images are needed and none are given, images without annotation, or a bad
            counter or number.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
    >>> calibration = calibrate(counter, scenes, patch_sizes=[20])
    >>> calibration.completion(patch_size=20).grid.reach
    23
    """
    methods, sizes = chosen(method), _sizes(patch_sizes)
    check_sequence("certify", samples)
    _check_counter(counter, methods)
    name = source or (samples.name if isinstance(samples, Dataset) else "calibration images")
    first = [_calibrate(counter, samples, methods, sizes, name, progress)] if ranks.first else []
    (calibration,) = ranks.gathered(first)
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
    needs_maps = any(method.needs_maps_of(counters, patch_sizes) for method in methods)
    needs_heads = any(method.needs_heads for method in methods)
    maps: list[list[Tensor]] = [[] for _ in counters]
    truths: list[float] = []
    shapes: list[tuple[int, int]] = []
    colours: list[Tensor] = []
    for number, sample in enumerate(each(samples if needs_images else ())):
        if progress is not None:
            progress(number, len(samples), f"calibrating on {sample.name}")
        check_sample(sample)
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
    completions = tuple(
        completion
        for method in methods
        for completion in method.complete(images, patch_sizes, progress)
    )
    images = replace(images, completions=completions)
    return Calibration(
        tuple(number for method in methods for number in method.calibrate(images, patch_sizes)),
        mean_colour(colours) if any(method.needs_fill for method in methods) else None,
        data_fingerprint(samples) if needs_images else None,
        completions,
    )


def _remedy(methods: Sequence[Certificate]) -> str:
    """Name what is missing without images: other images, or the numbers that they would fix."""
    others = "give other images than the certified ones"
    numbers = " and ".join(name for method in methods for name in method.uncalibrated)
    # Neither the colour of hidden pixels nor a network is a setting.
    if any(method.needs_images and not method.uncalibrated for method in methods):
        return others
    return f"{others}, or the numbers that they fix: {numbers}"


def run(
    counter: Counter,
    samples: Sequence[Sample],
    *,
    calibration: Calibration,
    method: Methods = "completion",
    patch_sizes: Sequence[int] = PATCH_SIZES,
    attack: PatchAttack | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
    settings: object | None = None,
    command: Sequence[str] = (),
    machine: Sequence[str] = (),
) -> CertifyRun:
    """Certify every sample: one interval per image, method and patch size.

    Args:
        counter: in eval mode, with cells that are not negative (``pycc.defense.clipped``). Of an
            ensemble (``pycc.defense.mixed``) each counter is masked by itself.
        samples: the images. A cell that the border of a region of interest cuts counts in
            proportion to its part inside.
        calibration: from ``calibrate`` with the same counter, methods and patch sizes.
        method: one of the names in ``certificates``, a method with its settings, or several.
        patch_sizes: sides of square patches, pixels.
        attack: attack the defended counters too (``adaptive_attack``), with patches of all sizes
            that push counts up and down; the summary lists the number of counts that leave their
            interval.
        seed: key of all randomness.
        out: run folder, new or empty; None keeps the results in memory.
        resume: continue the run in ``out``.
        progress: called for every image, in images.
        ranks: the processes of the run, which share the images.
        settings: settings of the command that started the run, a dataclass of ``pycc.settings``;
            the manifest stores them as ``flags``.
        command, machine: stored and compared as in ``pycc.runs.open_or_resume``.

    Raises:
        TypeError: a counter or samples of another type.
        ValueError: bad input, before anything is written; for a resumed run, settings, data,
            calibration or weights other than those of its manifest.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", shape=(96, 128), limit=1)
    >>> from pycc.certify import Masked
    >>> options = {"method": Masked(allowance=2.0), "patch_sizes": [20]}
    >>> calibration = calibrate(counter, [], **options)
    >>> result = run(counter, scenes, calibration=calibration, **options)
    >>> [row.patch_size for row in result.rows]
    [20]
    """
    methods, sizes = chosen(method), _sizes(patch_sizes)
    check_type("certify", "calibration", calibration, Calibration, "the result of calibrate")
    if attack is not None:
        check_type("certify", "attack", attack, PatchAttack, "an attack (adaptive_attack) or None")
    check_whole("certify", "seed", seed, 0)
    check(counter, samples, method=methods, patch_sizes=sizes)
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
                **({} if settings is None else {"flags": values_of(settings)}),
                "methods": [method.settings() for method in methods],
                "patch_sizes": sizes,
                "seed": seed,
                "attack": None if attack is None else {"name": attack.name, **attack.settings()},
                "calibration": [number.json() for number in calibration.numbers],
                "fill": calibration.fill,
                "completions": [asdict(entry.facts) for entry in calibration.completions],
            },
        )  # fmt: skip

    with sharded(opened, out, ranks, KEY) as shards:
        file = None if shards.main is None else shards.main.file(CALIBRATION)
        if file is not None:
            write_json(file, calibration.json())
        jobs = CertifyJobs(counter, methods, sizes, calibration, seed, len(samples), progress)
        jobs.check_field(samples)
        for index in ranks.share(range(len(samples))):
            jobs.certify(index, samples[index], shards.mine)
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
) -> None:
    """Check that a run can certify these samples, before the first one is certified.

    TypeError for a counter or samples of another type. ValueError for no samples, two of one name,
    a counter without the bounded receptive field that a method needs, and a patch or a number of
    kept pixels that does not fit into an image.
    """
    methods, largest = chosen(method), max(_sizes(patch_sizes))
    check_sequence("certify", samples)
    _check_counter(counter, methods)
    if not len(samples):
        raise ValueError("certify: samples must be at least one, got none")
    names = []
    for sample in each(samples):
        check_sample(sample)
        names.append(sample.name)
        shape = sample.image.shape[1], sample.image.shape[2]
        check_patch(sample.name, largest, shape)
        for certificate in methods:
            certificate.check_image(sample.name, shape)
    check_unique("certify", names)


def _check_counter(counter: Counter, methods: Sequence[Certificate]) -> None:
    check_counter("certify", counter)
    bounded = all(part.receptive_field is not None for part in parts_of(counter)[0])
    for method in methods:
        if method.from_map and not bounded:
            raise ValueError(
                f"{method.name}: the counter must have a bounded receptive field, got none: a "
                "patch can change every cell; count isolated tiles (pycc.defense.tiled, --tile), "
                "or take a method for any counter: two-mask, fixed-ablations or quantile"
            )


def _check_calibration(
    counter: Counter,
    methods: Sequence[Certificate],
    patch_sizes: Sequence[int],
    calibration: Calibration,
) -> None:
    """Raise ValueError unless the calibration has all that the methods need, as they state it."""
    for method in methods:
        if method.needs_fill:
            _ = calibration.colour
        method.check_calibration(parts_of(counter)[0], patch_sizes, calibration)
        for needed in method.needed_numbers(patch_sizes, len(parts_of(counter)[0])):
            value = calibration.value(needed.kind, needed.patch_size, needed.counter)
            if needed.given is not None and value != needed.given:
                given = with_unit(needed.kind, str(needed.given))
                raise ValueError(
                    f"{method.name}: the {needed.kind} is given as {given} and calibrated as "
                    f"{value}; calibrate with the same methods"
                )


def _sizes(patch_sizes: Sequence[int]) -> tuple[int, ...]:
    check_type("certify", "patch_sizes", patch_sizes, Sequence, "a list of pixels")
    sizes = tuple(dict.fromkeys(patch_sizes))
    if not sizes:
        raise ValueError("certify: patch_sizes must be at least one number of pixels, got none")
    return tuple(check_whole("certify", "patch_sizes", size, 1) for size in sizes)
