"""Pictures in and out: any common file becomes RGB in [0,1], and 8-bit PNG goes back."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pycc.checks import check_values

_ORIENTATION = 0x0112
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on broken files."""


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """Picture of a file as RGB [3,H,W], float32 in [0,1].

    EXIF orientation is applied. Grey, palette, CMYK and 1-bit pictures become RGB; transparent ones
    are laid on white. 16-bit grey keeps its 16 bits; of 16-bit colour the upper 8 are used. Raises
    ValueError naming the file if it is missing, broken, truncated or of values without known range.
    """
    with _opened(Path(path)) as picture:
        pixels = _rgb(ImageOps.exif_transpose(picture))
    return torch.from_numpy(pixels)


def load_opacity(path: str | os.PathLike[str]) -> Tensor | None:
    """Which pixels of a picture are there, [H,W] bool; None where all are.

    ValueError naming the file for pixels that are partially transparent, and as ``load_image``.
    """
    with _opened(Path(path)) as opened:
        picture = ImageOps.exif_transpose(opened)
        # As load_image sees it: grey of 16 bits has no alpha.
        if picture.mode[0] in "IF" or not picture.has_transparency_data:
            return None
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    partial = int(np.count_nonzero((alpha != 0) & (alpha != 255)))
    if partial:
        raise ValueError(
            f"{path}: expected pixels that are there or not (alpha 255 or 0), "
            f"got {partial} partially transparent"
        )
    there = torch.from_numpy(alpha == 255)
    return None if bool(there.all()) else there


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of what ``load_image`` gives, from the file's header alone."""
    with _opened(Path(path)) as picture:
        width, height = picture.size
        turned = picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def is_upright(path: str | os.PathLike[str]) -> bool:
    """Whether readers that know nothing of EXIF orientation see what ``load_image`` gives."""
    with _opened(Path(path)) as picture:
        return picture.getexif().get(_ORIENTATION) not in range(2, 9)


def quantize(image: Tensor) -> Tensor:
    """What an 8-bit file keeps of values in [0,1]: the nearest k/255 (others are clipped), float32.

    Any shape and device; equals, bit for bit, what ``load_image`` reads of a saved image.
    """
    steps = (image.detach().to(torch.float32).clamp(0.0, 1.0) * 255.0).round()
    # The divisor is a tensor: by a plain number CUDA multiplies with its rounded reciprocal.
    return steps / torch.full((), 255.0, device=steps.device)


def save_image(path: str | os.PathLike[str], image: Tensor) -> None:
    """Write [3,H,W], values in [0,1], as an 8-bit PNG: ``load_image`` gives ``quantize(image)``.

    The file appears whole or not at all. ValueError for another shape or values outside [0,1];
    OSError if it cannot be written.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"save_image: image must be [3,H,W], got {list(image.shape)}")
    check_values("save_image", "image", image)
    levels = (quantize(image) * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as stream:
            Image.fromarray(levels.cpu().contiguous().numpy()).save(stream, format="PNG")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened picture; whatever breaks while it is read becomes a ValueError with its name."""
    try:
        with Image.open(path) as picture:
            yield picture
    except _BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(reason.replace(f" {str(path)!r}", "").split())
        raise ValueError(f"{path}: cannot read the image: {reason}") from error


def _rgb(picture: Image.Image) -> NDArray[np.float32]:
    """RGB [3,H,W] in [0,1] of a picture of any mode."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.asarray(picture)
        return _repeat(grey, 65535)
    if picture.mode == "F":
        return _repeat(np.asarray(picture), 1)
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        pixels = _planes(picture.convert("RGBA"))
        return np.asarray(pixels[:3] * pixels[3:] + (1.0 - pixels[3:]), np.float32)
    return _planes(picture.convert("RGB"))


def _planes(picture: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(picture).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels).astype(np.float32) / np.float32(255.0)


def _repeat(grey: NDArray[np.generic], top: int) -> NDArray[np.float32]:
    """Three equal planes [3,H,W] of values that must lie in [0, top]."""
    values = grey.astype(np.float64) / top
    if not bool(((values >= 0.0) & (values <= 1.0)).all()):
        raise ValueError(f"grey values must lie in 0…{top}")
    return np.repeat(values.astype(np.float32)[None], 3, axis=0)


def mean_colour(images: Iterable[Tensor]) -> tuple[float, float, float]:
    """Mean of R, G, B in [0,1] over images [3,H,W], each with the same weight.

    What ablation and masks usually put in place of what they hide. ValueError for no images.
    """
    means = [image.double().mean((1, 2)) for image in images]
    if not means:
        raise ValueError("mean_colour: expected images, got none")
    red, green, blue = torch.stack(means).mean(0).tolist()
    return red, green, blue
