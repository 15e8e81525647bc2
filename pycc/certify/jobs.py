"""The certification of a run's images, each with all methods and patch sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from pycc.certify.calibration import Calibration
from pycc.certify.maps import certified_map, check_field
from pycc.certify.methods.base import Certificate, CertifiedImage
from pycc.certify.results import CLEAN
from pycc.checks import naming
from pycc.counters import like_of
from pycc.data import quantize
from pycc.defense.mixture import parts_of
from pycc.defense.region import regional
from pycc.runs import Record, Run
from pycc.types import Counter, Interval, Progress, Sample


class CertifyJobs:
    """Computes the intervals of a run, image by image."""

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
        """Add the records of an image that ``log`` does not contain yet."""
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
        changed = regional(self._counter, sample, image.cells)  # for methods that change images
        for method, patch_size in jobs:
            start = time.perf_counter()
            victim = self._counter if method.from_map else changed
            with naming(sample.name, sample.image.shape):
                interval = method.interval(victim, image, patch_size, self._calibration)
            spent = time.perf_counter() - start + (forward if method.from_map else 0.0)
            log.append({
                **base, "method": method.name, "patch_size": patch_size, **_record(interval),
                "seconds": spent,
            })  # fmt: skip

    def _inner_progress(self, index: int, name: str) -> Progress | None:
        """Return the progress of the draws or pairs of masks of an image, in images."""
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
        **({} if interval.alarm is None else {"alarm": interval.alarm}),
    }
