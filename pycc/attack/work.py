"""The work of a run: what is measured on which image, in which order."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pycc import ops
from pycc.attack import patch as patches
from pycc.attack.base import Attack, Scenes
from pycc.attack.cells import cell_density, cell_weight
from pycc.attack.survey import Item, Shelf, Survey
from pycc.attack.window import Box, influence
from pycc.data import load_image, quantize, save_image
from pycc.run import Record, Run, write_atomic
from pycc.types import Counter

_BATCH_PIXELS = 1 << 19
"""Most pixels of windows that are attacked together. Not read from the machine, so that a batch,
and with it every bit of a result, is a function of the images and settings."""

_FORWARD = 1 / 3
"""Share of a forward pass in the time of a forward and a backward pass."""


class Progress(Protocol):
    """Told how far a run is."""

    def __call__(self, done: float, total: float, label: str, /) -> None:
        """``done`` of ``total`` megapixels, forward and backward; and what is going on."""


def _grey(side: int, *, seed: int, image: int) -> Tensor:
    return torch.full((3, side, side), 0.5)


BASELINES: dict[str, Callable[..., Tensor]] = {
    "grey": _grey,
    "noise": partial(patches.noise, purpose="noise"),
}
"""Patches [3,side,side] that nobody optimised, from (side, seed, image)."""


class Work:
    """Everything a run has to measure, and measuring what is not known yet."""

    def __init__(
        self,
        attacks: Sequence[Attack],
        counter: Counter,
        samples: Shelf,
        found: Survey,
        seed: int,
        run: Run,
        progress: Progress | None,
    ) -> None:
        self.attacks, self.counter, self.samples, self.seed = attacks, counter, samples, seed
        self.items, self.run, self.progress = found.items, run, progress
        state = (
            [*counter.parameters(), *counter.buffers()] if isinstance(counter, nn.Module) else []
        )
        floats = [tensor for tensor in state if tensor.is_floating_point()]
        # The counter's own device and type; what holds no tensors works with what it is given.
        self._like = floats[0] if floats else torch.zeros(())
        self.plans = [self._plan(number) for number in range(len(attacks))]
        self._done, self._total = 0.0, self._cost()

    def do(self) -> None:
        """Measure what is missing: the baselines image by image, then each attack in batches."""
        for item in self.items:
            self.measure_baselines(item)
        for number, batches in enumerate(self.plans):
            for batch in batches:
                self.measure_attack(number, batch)

    # Planning

    def _window(self, item: Item, number: int) -> Box:
        extent = self.attacks[number].extent(item.places[number])
        field = self.counter.receptive_field
        return influence(extent, item.shape, stride=self.counter.stride, receptive_field=field)

    def _plan(self, number: int) -> list[list[Item]]:
        """Batches of equal patch side and window shape, a function of images and settings alone.

        A resumed run therefore computes an unfinished batch as a whole, with the same bits.
        """
        groups: dict[tuple[int, tuple[int, int]], list[Item]] = {}
        for item in self.items:
            key = item.places[number].side, self._window(item, number).shape
            groups.setdefault(key, []).append(item)
        batches = []
        for (_, (height, width)), items in groups.items():
            most = max(1, _BATCH_PIXELS // (height * width))
            even = math.ceil(len(items) / math.ceil(len(items) / most))
            batches += [items[start : start + even] for start in range(0, len(items), even)]
        return batches

    def _known(self, item: Item, number: int) -> bool:
        attack = self.attacks[number]
        return self.run.has(index=item.index, condition=attack.name, size=attack.size)

    def _cost(self) -> float:
        """Megapixels of what is still to be measured."""
        pixels = 0.0
        for item in self.items:
            wanted: list[tuple[str, int | float | None]] = [("none", None)]
            wanted += [(name, attack.size) for attack in self.attacks for name in BASELINES]
            wanted += [(attack.name, attack.size) for attack in self.attacks]
            missing = [
                not self.run.has(index=item.index, condition=condition, size=size)
                for condition, size in wanted
            ]
            pixels += item.shape[0] * item.shape[1] * _FORWARD * sum(missing)
        for number, attack in enumerate(self.attacks):
            for batch in self.plans[number]:
                if not all(self._known(item, number) for item in batch):
                    height, width = self._window(batch[0], number).shape
                    pixels += height * width * len(batch) * attack.steps
        return pixels / 1e6

    def _advance(self, pixels: float, label: str) -> None:
        self._done += pixels / 1e6
        if self.progress is not None:
            self.progress(min(self._done, self._total), self._total, label)

    # Measuring

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._like)

    def measure_baselines(self, item: Item) -> None:
        """The counts without a patch, and with the patches that nobody optimised."""
        self._measure(item, None, "none", None)
        for number, attack in enumerate(self.attacks):
            side = item.places[number].side
            for name, make in BASELINES.items():
                patch = partial(make, side, seed=self.seed, image=item.index)
                self._measure(item, number, name, attack.size, patch)

    def measure_attack(self, number: int, batch: list[Item]) -> None:
        """Optimise a batch of patches and measure what they do."""
        attack = self.attacks[number]
        if all(self._known(item, number) for item in batch):
            return
        height, width = self._window(batch[0], number).shape
        cost = float(height * width * len(batch))
        what = f"{attack.name} {attack.size}, {_range(batch)} of {len(self.items)}"

        def step_done(step: int) -> None:
            self._advance(cost, f"{what}, step {step} of {attack.steps}")

        scenes = self.scenes(batch, number)
        side = batch[0].places[number].side
        found = attack.optimise(self.counter, scenes, side, seed=self.seed, step_done=step_done)
        for item, patch in zip(batch, found.cpu().float(), strict=True):
            self._measure(item, number, attack.name, attack.size, patch.clone)

    def _measure(
        self,
        item: Item,
        number: int | None,
        condition: str,
        size: int | float | None,
        make: Callable[[], Tensor] | None = None,
    ) -> None:
        """Count one image under one condition and append the result, unless it is known."""
        if self.run.has(index=item.index, condition=condition, size=size):
            return
        sample = self.samples[item.index]
        image, record, file = sample.image, self._record(item, condition, size), None
        if condition not in BASELINES:
            file = record["file"] = _file_name(item, condition, size)
        if number is not None and make is not None:
            place, patch = item.places[number], make()
            mask = self.attacks[number].mask(place.side)
            top_left = torch.tensor([place.top_left])
            image = ops.paste_patch(image[None], patch, top_left=top_left, mask=mask)[0]
            record["top_left"] = list(place.top_left)
            record["side"] = place.side
            record["area"] = float(mask.sum()) / (item.shape[0] * item.shape[1])
            if file is not None:
                self._save_patch(f"{file}.png", patch, mask)
        cells = self._map(self._eight_bits(image, file), item)
        weight = cell_weight(sample, cells.shape[-2:], self.counter.stride)
        record["count"] = float((cells.double().cpu() * weight.double()).sum())
        record["cells"] = list(cells.shape[-2:])
        if file is not None and self.run.manifest["save_maps"]:
            self._save_map(f"{file}.npz", cells)
        self.run.append(record)
        pixels = item.shape[0] * item.shape[1]
        self._advance(pixels * _FORWARD, f"counting {item.name}, {condition}")

    def _record(self, item: Item, condition: str, size: int | float | None) -> Record:
        return {
            "index": item.index,
            "image": item.name,
            "condition": condition,
            "size": size,
            "height": item.shape[0],
            "width": item.shape[1],
            "truth": item.truth,
            "area": 0.0,
        }

    def _eight_bits(self, image: Tensor, name: str | None) -> Tensor:
        """The image as an 8-bit file holds it: written and read back, or rounded in memory."""
        file = None
        if name is not None and self.run.manifest["save_images"]:
            file = self.run.file("images", f"{name}.png")
        if file is None:
            return quantize(image)
        save_image(file, image)
        return load_image(file)

    def _map(self, image: Tensor, item: Item) -> Tensor:
        """The counter's map [1,1,h,w] of a full image [3,H,W]."""
        with torch.no_grad():
            cells = self.counter(self._put(image)[None])
        if not torch.isfinite(cells).all():
            raise ValueError(f"{item.name}: the counter's map must be finite, got NaN or infinity")
        stride = self.counter.stride
        for pixels, found in zip(item.shape, cells.shape[2:], strict=True):
            if not pixels // stride <= found <= -(-pixels // stride):
                raise ValueError(
                    f"{item.name}: a map of stride {stride} must have {pixels // stride} cells "
                    f"for {pixels} pixels, got {list(cells.shape)}"
                )
        return cells

    def scenes(self, batch: list[Item], number: int) -> Scenes:
        """The windows of a batch with what the loss needs to know of their images."""
        stride = self.counter.stride
        boxes = [self._window(item, number) for item in batch]
        samples = [self.samples[item.index] for item in batch]
        images = torch.stack(
            [
                self._put(quantize(s.image[:, *b.slices]))
                for s, b in zip(samples, boxes, strict=True)
            ]
        )
        with torch.no_grad():
            clean = self.counter(images)
        known = {r["index"]: r for r in self.run.records if r["condition"] == "none"}
        density, weight, cells, count, corners = [], [], [], [], []
        for item, sample, box in zip(batch, samples, boxes, strict=True):
            record = known[item.index]
            shape: tuple[int, int] = tuple(record["cells"])
            top, left = box.top // stride, box.left // stride
            rows, columns = slice(top, top + clean.shape[2]), slice(left, left + clean.shape[3])
            full = cell_weight(sample, shape, stride)
            density.append(cell_density(sample, shape, stride)[None, rows, columns])
            weight.append(full[None, rows, columns])
            # An image without a region to count in has no loss, rather than one of 0 / 0.
            cells.append(full.sum().clamp(min=1.0))
            count.append(record["count"])
            y, x = item.places[number].top_left
            corners.append((y - box.top, x - box.left))
        if any(map_.shape != clean.shape[1:] for map_ in weight):
            raise ValueError(
                f"attack: a counter of stride {stride} must give the same cells for a window as "
                f"for the image, got {list(clean.shape[2:])} for {list(images.shape[2:])} pixels"
            )
        return Scenes(
            images=images,
            clean=clean,
            density=self._put(torch.stack(density)),
            weight=self._put(torch.stack(weight)),
            cells=self._put(torch.stack(cells)),
            count=self._put(torch.tensor(count, dtype=torch.float64)),
            top_left=torch.tensor(corners).to(images.device),
            index=tuple(item.index for item in batch),
        )

    # Files

    def _save_patch(self, name: str, patch: Tensor, mask: Tensor) -> None:
        """The patch as PNG; what is not part of its shape is transparent."""
        file = self.run.file("patches", name)
        if file is None:
            return
        planes = torch.cat([quantize(patch), mask[None]]) * 255.0
        pixels = planes.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        stream = io.BytesIO()
        Image.fromarray(pixels if bool((mask == 0).any()) else pixels[..., :3]).save(stream, "PNG")
        write_atomic(file, stream.getvalue())

    def _save_map(self, name: str, cells: Tensor) -> None:
        file = self.run.file("maps", name)
        if file is not None:
            stream = io.BytesIO()
            np.savez_compressed(stream, density=cells[0, 0].cpu().float().numpy())
            write_atomic(file, stream.getvalue())


def _file_name(item: Item, condition: str, size: int | float | None) -> str:
    """Unique, whatever characters the image's name has, and sorted like the data set."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", item.name)
    return f"{item.index:04d}-{safe}.{condition}" + ("" if size is None else f"-{size}")


def _range(batch: list[Item]) -> str:
    if len(batch) == 1:
        return f"image {batch[0].index + 1}"
    return f"images {batch[0].index + 1} to {batch[-1].index + 1}"
