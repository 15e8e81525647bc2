"""Transforms that a patch must withstand, drawn anew for each step, image and draw.

Parameters are drawn outside of what is differentiated. Sampling never changes a pixel outside the
warped mask.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.attack.problem import AttackedRegion
from pycc.random import Stream
from pycc.registry import Registry

Drawn = NDArray[np.float64]
"""[R,k] of [-1,1): what a row's transform is made of; one row for each image and draw."""


class Transform(Protocol):
    """A family of transforms of a patch, and how one of them is applied."""

    def margin(self, side: int) -> int:
        """Pixels by which the transformed patch may stick out of its place on each side."""

    def paste(
        self, region: AttackedRegion, patch: Tensor, patch_mask: Tensor, drawn: Drawn, sampling: str
    ) -> Tensor:
        """The boxes [R,3,h,w] of the region with the transformed patches.

        ``patch`` [N,3,p,p], ``patch_mask`` [p,p] of 0 and 1; with R = N·D, row n·D + d is image n.
        """


transforms: Registry[Transform] = Registry("transform")


def draw(
    images: Sequence[int], *, seed: int, step: int, eot_samples: int, restart: int = 0
) -> Drawn:
    """The random numbers of a step, [len(images)·eot_samples, 16]."""
    keys = [(image, restart * eot_samples + d) for image in images for d in range(eot_samples)]
    rows = [
        Stream(seed, "transform", image=image, step=step, draw=d).uniform(-1, 1, 16)
        for image, d in keys
    ]
    return np.stack(rows)


def _rows(region: AttackedRegion, patch: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, places and patches, a row for each draw of each image."""
    each = region.pixels, region.top_left, patch
    draws = len(drawn) // len(patch)
    pixels, top_left, patch = (x.repeat_interleave(draws, 0) if draws > 1 else x for x in each)
    return pixels, top_left, patch


class _Nothing:
    """The patch, unchanged."""

    def margin(self, side: int) -> int:
        return 0

    def paste(
        self, region: AttackedRegion, patch: Tensor, patch_mask: Tensor, drawn: Drawn, sampling: str
    ) -> Tensor:
        pixels, top_left, patch = _rows(region, patch, drawn)
        return ops.paste_patch(pixels, patch, top_left=top_left, mask=patch_mask, sampling=sampling)


class _Affine:
    """Rotation, zoom and brightness within the ranges of the published code."""

    rotation, zoom, brightness = 5.0, 0.025, 0.05
    """Ranges (±): degrees, share of the side, share of white."""

    def margin(self, side: int) -> int:
        angle = math.radians(self.rotation)
        # Half the bounding box of the zoomed and rotated square, beyond its outermost pixels.
        half = 0.5 * side * (1 + self.zoom) * (math.cos(angle) + math.sin(angle))
        return math.ceil(half - 0.5 * (side - 1))

    def paste(
        self, region: AttackedRegion, patch: Tensor, patch_mask: Tensor, drawn: Drawn, sampling: str
    ) -> Tensor:
        pixels, top_left, patch = _rows(region, patch, drawn)
        angle, zoom, brightness = torch.from_numpy(drawn[:, :3]).float().unbind(1)
        zoom = 1.0 + self.zoom * zoom
        return ops.paste_patch(
            pixels,
            patch,
            top_left=top_left + self.shift(patch.shape[-1], zoom, sampling).to(top_left.device),
            mask=patch_mask,
            angle=self.rotation * angle,
            zoom=zoom,
            brightness=self.brightness * brightness,
            sampling=sampling,
        )

    @staticmethod
    def shift(side: int, zoom: Tensor, sampling: str) -> Tensor:
        """Return the shift, [R,1] or [], that centres nested patches, which are placed zoomed."""
        if sampling == "single":
            return torch.zeros((), dtype=torch.int64)
        zoomed = torch.round(side * zoom.double()).long()
        return torch.div(side - zoomed, 2, rounding_mode="floor")[:, None]


class _Physical:
    """A printed patch before a camera: perspective, light, blur, noise and JPEG.

    The print is contrasted and brightened, blurred, made noisy and compressed (JPEG passes the
    gradient straight through), then laid into the image by one projective, bilinear pass.
    """

    rotation, zoom, perspective = 22.5, 0.1, 0.08
    """Ranges (±): degrees, share of the side, shift of each corner as a share of the side."""
    brightness, contrast = 0.1, 0.2
    """Ranges (±): share of white; share of the distance from mid grey."""
    blur, noise, quality = 1.0, 0.03, (50, 95)
    """Largest standard deviations in patch pixels and of white; JPEG qualities."""

    def margin(self, side: int) -> int:
        angle = math.radians(self.rotation)
        wide = 0.5 * side * (1 + 2 * self.perspective) * (1 + self.zoom)
        return math.ceil(wide * (math.cos(angle) + math.sin(angle)) - 0.5 * (side - 1))

    def paste(
        self, region: AttackedRegion, patch: Tensor, patch_mask: Tensor, drawn: Drawn, sampling: str
    ) -> Tensor:
        pixels, top_left, patch = _rows(region, patch, drawn)
        seen = self._camera(patch, drawn)
        side, (height, width) = patch.shape[-1], pixels.shape[-2:]
        # Where each pixel of the box looks in the patch, whose pixels lie at whole numbers. Places
        # are relative to the patch's first pixel, never beyond the horizon as the box's may be.
        back = torch.from_numpy(homography(self.corners(side, drawn), side)).to(pixels.device)
        y, x = (
            torch.arange(size, dtype=torch.float64, device=pixels.device) - top_left[:, axis, None]
            for axis, size in enumerate((height, width))
        )
        y, x = y[:, :, None].expand(-1, -1, width), x[:, None, :].expand(-1, height, -1)
        at = torch.einsum("rij,rjhw->rihw", back, torch.stack([y, x, torch.ones_like(y)], dim=1))
        row, column = at[:, 0] / at[:, 2], at[:, 1] / at[:, 2]
        nearest = [(value + 0.5).floor().long() for value in (row, column)]
        inside = torch.stack([(n >= 0) & (n < side) for n in nearest]).all(0) & (at[:, 2] > 0)
        i, j = (n.clamp(0, side - 1) for n in nearest)
        covered = (inside & patch_mask.bool()[i, j])[:, None]
        grid = torch.stack([column, row], dim=-1) * (2 / max(side - 1, 1)) - 1
        warped = functional.grid_sample(
            seen, grid.to(seen), padding_mode="border", align_corners=True
        )
        return torch.where(covered, warped, pixels)

    def _camera(self, patch: Tensor, drawn: Drawn) -> Tensor:
        """Photograph the printed patches [R,3,p,p]: contrast, brightness, blur and noise."""
        contrast = _column(1 + self.contrast * drawn[:, 0], patch)
        bright = _column(self.brightness * drawn[:, 1], patch)
        seen = ((patch - 0.5) * contrast + 0.5 + bright).clamp(0.0, 1.0)
        seen = blur(seen, self.blur * (drawn[:, 2] + 1) / 2)
        grains = np.stack([
            Stream(int.from_bytes(row[3:4].tobytes()), "noise").normal(tuple(patch.shape[1:]))
            for row in drawn
        ])  # fmt: skip
        level = _column(self.noise * (drawn[:, 4] + 1) / 2, patch)
        seen = (seen + level * torch.from_numpy(grains).to(patch)).clamp(0.0, 1.0)
        low, high = self.quality
        qualities = (low + (high - low) * (drawn[:, 5] + 1) / 2).round().astype(int)
        with torch.no_grad():
            lost = jpeg(seen, qualities.tolist()) - seen
        return seen + lost

    def corners(self, side: int, drawn: Drawn) -> NDArray[np.float64]:
        """Draw the places [R,4,2] (y, x) of the corners, relative to the patch's first pixel."""
        square = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * 0.5
        shifted = square + self.perspective * drawn[:, 6:14].reshape(-1, 4, 2)
        angle = np.radians(self.rotation * drawn[:, 14])
        turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(
            -1, 2, 2
        )
        zoom = (1 + self.zoom * drawn[:, 15])[:, None, None]
        turned: NDArray[np.float64] = np.einsum("rij,rkj->rki", turn, shifted) * zoom * side
        return turned + 0.5 * (side - 1)


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)[:, None, None, None]


def homography(corners: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Map places (y, x, 1) in the image to those in the patch: [R,3,3], for corners [R,4,2].

    Places are relative to one that the patch covers or nearly so: the third number it gives is 1
    there, and positive on this side of the horizon.
    """
    low, high = -0.5, side - 0.5
    wanted = np.array([[low, low], [low, high], [high, high], [high, low]])
    rows = len(corners)
    system = np.zeros((rows, 8, 8))
    for corner, (v, u) in enumerate(wanted):
        y, x = corners[:, corner, 0], corners[:, corner, 1]
        for axis, value in enumerate((v, u)):
            line = system[:, 2 * corner + axis]
            line[:, 3 * axis], line[:, 3 * axis + 1], line[:, 3 * axis + 2] = y, x, 1
            line[:, 6], line[:, 7] = -value * y, -value * x
    right = np.broadcast_to(wanted.reshape(1, 8, 1), (rows, 8, 1))
    solved = np.linalg.solve(system, right)[..., 0]
    return np.concatenate([solved, np.ones((rows, 1))], axis=1).reshape(rows, 3, 3)


def blur(patch: Tensor, sigma: NDArray[np.float64], radius: int = 3) -> Tensor:
    """Patches [R,3,p,p], each blurred by a Gaussian of its own; the rim repeats outwards."""
    at = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (at[None] / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    taps = torch.from_numpy(weights / weights.sum(1, keepdims=True)).to(patch)
    rows, channels, height, width = patch.shape
    taps = taps.repeat_interleave(channels, 0)[:, None]
    flat = patch.reshape(1, rows * channels, height, width)
    for kernel, margins in ((taps[..., None], (0, 0, radius, radius)),
                            (taps[:, :, None], (radius, radius, 0, 0))):  # fmt: skip
        padded = functional.pad(flat, margins, mode="replicate")
        flat = functional.conv2d(padded, kernel, groups=rows * channels)
    return flat.reshape(patch.shape)


def jpeg(patch: Tensor, qualities: Sequence[int]) -> Tensor:
    """Patches [R,3,p,p] as a JPEG file keeps them."""
    levels = (patch * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    kept = []
    for picture, quality in zip(levels, qualities, strict=True):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=int(quality))
        kept.append(np.asarray(Image.open(stream)))
    return (torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2) / 255.0).to(patch)


transforms.register("published")(_Affine())
transforms.register("none")(_Nothing())
transforms.register("physical")(_Physical())
