"""Count one image under one condition, and record the result."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycc import ops
from pycc.attack.evaluation.baselines import baselines
from pycc.attack.evaluation.builder import Member
from pycc.attack.evaluation.checked import CheckedImage, SampleCache
from pycc.attack.patch import Place
from pycc.data import load_image, quantize, save_image
from pycc.runs import Record, Run, write_atomic

KEY = ("index", "condition", "patch_size", "surrogates", "victim", "seed")
"""The fields that identify a result of an attack run."""


@dataclass(frozen=True)
class Case:
    """One image under one condition."""

    item: CheckedImage
    condition: str
    patch_size: int | float | None
    seed: int
    surrogates: str | None = None
    """The counters that the patch was optimised on; None: the victim itself, or not optimised."""

    @property
    def file(self) -> str:
        """The stem of its files: unique for all names of images, sorted like the data set."""
        parts = [f"{self.item.index:04d}-{_safe(self.item.name)}.{self.condition}"]
        parts += [] if self.patch_size is None else [str(self.patch_size)]
        parts += [] if self.surrogates is None else [f"from-{_safe(self.surrogates)}"]
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join(parts)


@dataclass(frozen=True, eq=False)
class PlacedPatch:
    """A patch at its place in an image."""

    place: Place
    patch: Tensor
    """[3,p,p] in [0,1]."""
    patch_mask: Tensor
    """[p,p] of 0 and 1: the patch's shape."""


class ResultRecorder:
    """Counts full images, attacked ones as read back from their PNG, and appends the results."""

    def __init__(self, samples: SampleCache, run: Run) -> None:
        self._samples, self._run = samples, run
        self.patches: dict[str, Tensor] = {}
        """The optimised patches [3,p,p], white outside their shape, by the stem of their files;
        for a run without a folder."""

    def knows(self, case: Case, victim: Member) -> bool:
        """Whether there is a result already."""
        return self._run.has(
            index=case.item.index,
            condition=case.condition,
            patch_size=case.patch_size,
            surrogates=case.surrogates,
            victim=victim.label,
            seed=case.seed,
        )

    def measure(
        self,
        case: Case,
        victim: Member,
        *,
        patch: PlacedPatch | None = None,
        image: Tensor | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> Record:
        """Count the image with a patch, another image in its place, or the clean one.

        ``facts`` are further fields of the record.
        """
        item = case.item
        sample = self._samples[item.index]
        record: Record = {
            "index": item.index,
            "image": item.name,
            "condition": case.condition,
            "patch_size": case.patch_size,
            "surrogates": case.surrogates,
            "victim": victim.label,
            "seed": case.seed,
            "height": item.shape[0],
            "width": item.shape[1],
            "truth": item.truth,
            "area": 0.0 if image is None else 1.0,
            **(facts or {}),
        }
        if item.group is not None:
            record["group"] = item.group
        kept = case.condition not in (*baselines.names(), "pgd")
        if kept:
            record["file"] = case.file
        if image is None:
            image = sample.image
        if patch is not None:
            place, patch_mask = patch.place, patch.patch_mask
            image = with_patch(image, patch.patch, place.top_left, patch_mask)
            record["top_left"] = list(place.top_left)
            record["side"] = place.side
            record["area"] = float(patch_mask.sum()) / (item.shape[0] * item.shape[1])
            if kept:
                self._keep_patch(case.file, patch.patch, patch_mask)
        shown = self._eight_bits(image, case.file if kept else None)
        cells = victim.map(shown, item.name)
        record["count"] = victim.count(cells, sample)
        record["cells"] = list(cells.shape[-2:])
        alarm = victim.alarm(shown)
        if alarm is not None:
            record["alarm"] = alarm
        if kept and self._run.manifest["settings"]["save_maps"]:
            name = case.file if victim.label is None else f"{case.file}-by-{_safe(victim.label)}"
            self._save_map(f"{name}.npz", cells)
        self._run.append(record)
        return record

    def _eight_bits(self, image: Tensor, name: str | None) -> Tensor:
        """The image in 8 bits: written and read back, or rounded in memory."""
        file = None
        if name is not None and self._run.manifest["settings"]["save_images"]:
            file = self._run.file("images", f"{name}.png")
        if file is None:
            return quantize(image)
        save_image(file, image)
        return load_image(file, max_image_pixels=image[0].numel())

    def _keep_patch(self, name: str, patch: Tensor, patch_mask: Tensor) -> None:
        """Keep the patch as PNG, transparent outside its shape, or in memory without a folder."""
        file = self._run.file("patches", f"{name}.png")
        if file is None:
            self.patches[name] = torch.where(
                patch_mask.bool(), quantize(patch), 1.0
            )  # as a reader has it
            return
        planes = torch.cat([quantize(patch), patch_mask[None]]) * 255.0
        pixels = planes.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        stream = io.BytesIO()
        Image.fromarray(pixels if bool((patch_mask == 0).any()) else pixels[..., :3]).save(
            stream, "PNG"
        )
        write_atomic(file, stream.getvalue())

    def _save_map(self, name: str, cells: Tensor) -> None:
        file = self._run.file("maps", name)
        if file is not None:
            stream = io.BytesIO()
            np.savez_compressed(stream, density=cells[0, 0].cpu().float().numpy())
            write_atomic(file, stream.getvalue())


def with_patch(
    image: Tensor, patch: Tensor, top_left: tuple[int, int], patch_mask: Tensor
) -> Tensor:
    """The image [3,H,W] with the patch [3,p,p] at (y, x) where ``patch_mask`` [p,p] is 1."""
    place = torch.tensor([top_left])
    return ops.paste_patch(image[None], patch, top_left=place, mask=patch_mask)[0]


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
