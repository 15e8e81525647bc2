"""A fixed image, a counter's counts of it, and a search for a wrong input convention."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pycc.counters import like_of
from pycc.models.base import CounterModel
from pycc.models.convention import CHANNELS, Convention

HEADS = 32
"""Discs on the probe image."""
_SHAPE = (96, 128)
_FACTORS = (1.0, 1 / 64, 1 / 100)
"""Output scales that undo those of published trainings."""
_FAR = 5.0
"""A counter that fits its weights is not wrong by more than this factor on the probe image: the
public MCNN weights count 14 to 37 for its 32 discs."""
_GROUND = 0.25
"""The largest share of its count that such a counter counts on the bare ground."""


def _ground() -> np.ndarray:
    y, x = np.mgrid[0 : _SHAPE[0], 0 : _SHAPE[1]].astype(np.float64)
    ground = 0.65 + 0.1 * np.sin(x / 9.0) * np.cos(y / 7.0) + 0.1 * (y / 96.0)
    return np.stack([ground, 0.95 * ground, 0.85 * ground])


def probe_image() -> Tensor:
    """Compute a fixed image [1,3,96,128] in [0,1]; weights metadata states the count on it.

    Light ground with waves, and rows of dark discs that grow towards the lower edge: they resemble
    heads enough for a counter to count some.
    """
    y, x = np.mgrid[0 : _SHAPE[0], 0 : _SHAPE[1]].astype(np.float64)
    image = _ground()
    for row in range(5):
        radius = 2.5 + row
        centre_y = 10.0 + 4.0 * row * (row + 1)
        for centre_x in np.arange(4.0 + 3.0 * row, 128.0, 5.0 * radius):
            inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2
            image[:, inside] = np.array([[0.25], [0.2], [0.15]])
    return torch.from_numpy(image.astype(np.float32)).unsqueeze(0)


def blank_image() -> Tensor:
    """Compute the ground of the probe image [1,3,96,128] without its discs."""
    return torch.from_numpy(_ground().astype(np.float32)).unsqueeze(0)


@dataclass(frozen=True)
class ProbeResult:
    """A counter's results on the probe and the blank image, in people."""

    count: float
    checksum: float
    """Sum of the probe's map, each cell weighted by its own number from 1 to 2: it differs between
    maps of the same count that differ somewhere."""
    blank: float

    def json(self) -> dict[str, float]:
        """Return it as a JSON object, a part of the weights metadata."""
        return {
            "probe_count": self.count, "probe_checksum": self.checksum, "blank_count": self.blank
        }  # fmt: skip

    @property
    def plausible(self) -> bool:
        """Whether the counter counts about as many people as there are discs, and few elsewhere."""
        near = HEADS / _FAR <= self.count <= HEADS * _FAR
        return near and abs(self.blank) <= _GROUND * self.count

    def times(self, factor: float) -> ProbeResult:
        """Return the result of the counter with another output scale."""
        return ProbeResult(self.count * factor, self.checksum * factor, self.blank * factor)


@torch.no_grad()
def probe_result(counter: CounterModel) -> ProbeResult:
    """Count both images with a counter in eval mode, on its own device and in its own type."""
    mode = counter.training
    like = like_of(counter)
    counter.eval()
    try:
        # One at a time: the result in a batch may differ in the last bit from that alone.
        probed, blank = (counter(image().to(like))[0, 0] for image in (probe_image, blank_image))
    finally:
        counter.train(mode)
    cells = torch.arange(probed.numel(), dtype=torch.float64) * math.sqrt(2.0)
    weight = 1.0 + (cells - cells.floor()).view(probed.shape)
    summed = probed.double().cpu()
    return ProbeResult(
        float(summed.sum()), float((summed * weight).sum()), float(blank.double().cpu().sum())
    )


def probe_count(counter: CounterModel) -> float:
    """Count ``probe_image`` with a counter, in eval mode and without gradients."""
    return probe_result(counter).count


def diagnose(counter: CounterModel) -> str | None:
    """Find other readings of a counter's weights that make an implausible counter plausible.

    The counter is tested under every input convention with its number of channels, every value of
    the options that its keys do not show (``hidden_options``), and the output scales of published
    trainings. Returns a message that names those readings that count about as many heads on the
    probe image as there are, and nearly none on its bare ground, nearest first. None for a counter
    that is already plausible, and for one that no reading makes plausible. Some random weights are
    plausible by chance; some trained weights are plausible in a convention that is not theirs.

    >>> from pycc import models
    >>> diagnose(models.load("mcnn-synthetic")) is None
    True
    """
    now = probe_result(counter)
    if now.plausible:
        return None
    plausible: list[tuple[float, str]] = []
    factors = _FACTORS if "scale" in counter.options() else (1.0,)
    for changes, other in _readings(counter):
        result = probe_result(other)
        for factor in factors:
            scaled = result.times(factor)
            if (changes or factor != 1.0) and scaled.plausible:
                scale = {} if factor == 1.0 else {"scale": float(f"{other.scale * factor:.6g}")}
                text = " ".join(f"{k}={v!r}" for k, v in {**changes, **scale}.items())
                # A reading that changes fewer options is preferred.
                distance = abs(math.log(scaled.count / HEADS)) + len(changes) + len(scale)
                plausible.append((distance, f"{text} ({scaled.count:.1f})"))
    if not plausible:
        return None
    best = [text for _, text in sorted(plausible)[:3]]
    return (
        f"counts {now.count:.4g} people on the probe image of {HEADS} heads and {now.blank:.4g} on "
        f"its bare ground, as {_reading(counter)}; plausible in another convention: "
        + ", ".join(best)
    )


def hidden_readings(
    counter: CounterModel, given: Collection[str] = ()
) -> list[tuple[dict[str, object], ProbeResult]]:
    """Compute the results of the readings that neither keys nor ``given`` options exclude.

    They are those of the same tensors under other values of options that the counter's keys do not
    show and its metadata does not state, with the options that differ.
    """
    stated = counter.metadata.get("options", {})
    known = {*given, *(stated if isinstance(stated, dict) else ())}
    open_options = {
        k: values
        for k, values in counter.hidden_options().items()
        if values and k in counter.options() and k not in known
    }
    results = []
    for values in product(*open_options.values()):
        wanted = dict(zip(open_options, values, strict=True))
        changes = {k: value for k, value in wanted.items() if value != counter.options()[k]}
        if changes:
            results.append((changes, probe_result(_with(counter, counter.options(), changes))))
    return results


def _readings(counter: CounterModel) -> Iterator[tuple[dict[str, object], CounterModel]]:
    """Yield the changed options and the counter of every reading of the same tensors."""
    options, kind = counter.options(), counter.convention.kind
    inputs = [name for name in CHANNELS if CHANNELS[name] == CHANNELS[kind]]
    not_in_keys = {
        k: values for k, values in counter.hidden_options().items() if values and k in options
    }
    for values in product(*not_in_keys.values()):
        wanted = dict(zip(not_in_keys, values, strict=True))
        changes = {name: value for name, value in wanted.items() if value != options[name]}
        read = _with(counter, options, changes) if changes else counter
        for kind in inputs:
            if kind == read.convention.kind:
                yield changes, read
            else:
                other = copy.copy(read)
                other.convention = Convention(kind)
                yield {**changes, "input": kind}, other


def _with(
    counter: CounterModel, options: Mapping[str, object], changes: Mapping[str, object]
) -> CounterModel:
    """Return the counter with other options and the same tensors."""
    left = {"input", "mean", "std", "scale"} if "variant" in changes else set()
    kept = {name: value for name, value in options.items() if name not in left}
    with torch.device("meta"):
        other = cast("Callable[..., CounterModel]", type(counter))(**{**kept, **changes})
    other.net.load_state_dict(counter.net.state_dict(), assign=True)
    return other.eval()


def _reading(counter: CounterModel) -> str:
    return f"input={counter.convention.kind!r} scale={counter.scale:g}"
