"""Image files: read any common format as RGB in [0,1], write 8-bit PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pycc.checks import check_image
from pycc.data.depth import colour_of_16_bits, of_16_bits, stored, white_of
from pycc.data.reading import MAX_IMAGE_PIXELS, USUAL, Reading, opened, warn_of_frames
from pycc.runs import write_atomic

_ORIENTATION = 0x0112


def load_image(
    path: str | os.PathLike[str],
    *,
    bit_depth: int | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Tensor:
    """Read an image file as RGB [3,H,W], float32 in [0,1].

    EXIF orientation is applied. Of several pages or frames the first is read, with a warning. Grey,
    palette, CMYK and 1-bit images become RGB; transparent ones are laid on white. 16-bit grey keeps
    its 16 bits; of 16-bit colour the upper 8 bits are used. ``bit_depth`` is for 16-bit files whose
    values have fewer bits, such as a camera's 12: they are divided by 2^bit_depth - 1, in grey and
    in colour, opacity by 65535. Files that state another depth themselves are read by it. Without
    ``bit_depth``, a 16-bit image that is not black and has no value above 4095 causes a warning.

    ValueError naming the file if it is missing, broken, truncated, has more than
    ``max_image_pixels`` pixels, or values outside their range.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_image(f"{folder}/a.png", torch.full((3, 4, 6), 0.2))
    ...     image = load_image(f"{folder}/a.png")
    >>> list(image.shape), round(float(image.max()), 4)
    ([3, 4, 6], 0.2)
    """
    return read_image(Path(path), Reading(bit_depth, max_image_pixels))


def read_image(path: Path, reading: Reading) -> Tensor:
    """Read an image file as ``load_image`` does with these options."""
    with opened(path, reading) as picture:
        pixels = _rgb(path, picture, reading)
        warn_of_frames(path, picture)
    return torch.from_numpy(pixels)


def image_size(path: Path, reading: Reading = USUAL) -> tuple[int, int]:
    """Return (H, W) of the result of ``read_image``, from the file's header alone."""
    with opened(path, reading) as picture:
        width, height = picture.size
        turned = picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def load_alpha(path: str | os.PathLike[str]) -> Tensor | None:
    """Read the opacity of an image's pixels, [H,W] float32 in [0,1]; None if the file has none.

    ValueError as for ``load_image``.
    """
    with opened(Path(path), USUAL) as source:
        picture = ImageOps.exif_transpose(source)
        # As in load_image: 16-bit grey has no alpha.
        if picture.mode[0] in "IF" or not picture.has_transparency_data:
            return None
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    return torch.from_numpy(alpha.astype(np.float32) / np.float32(255.0))


def load_opacity(path: str | os.PathLike[str]) -> Tensor | None:
    """Return which pixels of an image file are opaque, [H,W] bool; None if all are.

    ValueError naming the file for partially transparent pixels, and as for ``load_image``.

    >>> import tempfile
    >>> levels = np.full((2, 3, 4), 255, np.uint8)
    >>> levels[0, 0, 3] = 0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(levels).save(f"{folder}/disc.png")
    ...     opacity = load_opacity(f"{folder}/disc.png")
    >>> opacity.tolist()
    [[False, True, True], [True, True, True]]
    """
    alpha = load_alpha(path)
    if alpha is None:
        return None
    partial = int(((alpha > 0.0) & (alpha < 1.0)).sum())
    if partial:
        raise ValueError(
            f"{path}: expected opaque or transparent pixels (alpha 255 or 0), "
            f"got {partial} partially transparent"
        )
    opaque = alpha == 1.0
    return None if bool(opaque.all()) else opaque


def is_rescaled(path: Path, reading: Reading) -> bool:
    """Return whether ``bit_depth`` changes the values that are read from a file."""
    if reading.bit_depth in (None, 16):
        return False
    with opened(path, reading) as picture:
        return of_16_bits(picture)


def is_upright(path: str | os.PathLike[str], reading: Reading = USUAL) -> bool:
    """Return whether readers that ignore EXIF orientation see the same as ``load_image``."""
    with opened(Path(path), reading) as picture:
        return picture.getexif().get(_ORIENTATION) not in range(2, 9)


def quantize(image: Tensor) -> Tensor:
    """Round values in [0,1] to the nearest k/255, as an 8-bit file does; clip others; float32.

    Any shape and device. The result equals, bit for bit, what ``load_image`` reads from a saved
    image.

    >>> [round(value, 4) for value in quantize(torch.tensor([0.2, 0.5, 1.5])).tolist()]
    [0.2, 0.502, 1.0]
    """
    steps = (image.detach().to(torch.float32).clamp(0.0, 1.0) * 255.0).round()
    # The divisor is a tensor: for a Python number CUDA multiplies by its rounded reciprocal.
    return steps / torch.full((), 255.0, device=steps.device)


def save_image(path: str | os.PathLike[str], image: Tensor) -> None:
    """Write [3,H,W], values in [0,1], as an 8-bit PNG: ``load_image`` returns ``quantize(image)``.

    The file appears complete or not at all. ValueError for another shape, integers or values
    outside [0,1]; TypeError if it is not a tensor; OSError if the file cannot be written.

    >>> import tempfile
    >>> image = torch.rand(3, 8, 8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_image(f"{folder}/a.png", image)
    ...     torch.equal(load_image(f"{folder}/a.png"), quantize(image))
    True
    """
    check_image("save_image", image)
    levels = (quantize(image) * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(levels.cpu().contiguous().numpy()).save(stream, format="PNG")
    write_atomic(Path(path), stream.getvalue())


def _rgb(path: Path, source: Image.Image, reading: Reading) -> NDArray[np.float32]:
    """Convert an image of any mode to upright RGB [3,H,W] in [0,1]."""
    # After decoding, Pillow no longer knows how the file stores its values.
    kept, deep = stored(source), of_16_bits(source)
    picture = ImageOps.exif_transpose(source)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.asarray(picture)
        if kept == "I;12":
            return _repeat(grey, 4095)
        return _repeat(grey, white_of(path, int(grey.max()), reading) if deep else 65535)
    if picture.mode == "F":
        return _repeat(np.asarray(picture), 1)
    if deep:
        values = colour_of_16_bits(path, picture, kept, reading)
        if values is not None:
            return values
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        pixels = _planes(picture.convert("RGBA"))
        return np.asarray(pixels[:3] * pixels[3:] + (1.0 - pixels[3:]), np.float32)
    return _planes(picture.convert("RGB"))


def _planes(picture: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(picture).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels).astype(np.float32) / np.float32(255.0)


def _repeat(grey: NDArray[np.generic], top: int) -> NDArray[np.float32]:
    """Repeat grey values, which must lie in [0, top], as three equal planes [3,H,W]."""
    values = grey.astype(np.float64) / top
    if not bool(((values >= 0.0) & (values <= 1.0)).all()):
        raise ValueError(f"grey values must lie in 0…{top}")
    return np.repeat(values.astype(np.float32)[None], 3, axis=0)


def mean_colour(images: Iterable[Tensor]) -> tuple[float, float, float]:
    """Compute the mean of R, G, B in [0,1] over images [3,H,W], each with the same weight.

    Ablation and masks usually fill hidden pixels with it. ValueError for no images, for another
    shape, integers or values outside [0,1]; TypeError if an image is not a tensor.

    >>> mean_colour([torch.zeros(3, 4, 4), torch.full((3, 2, 2), 0.5)])
    (0.25, 0.25, 0.25)
    """
    means = []
    for image in images:
        check_image("mean_colour", image)
        means.append(image.double().mean((1, 2)))
    if not means:
        raise ValueError("mean_colour: expected images, got none")
    red, green, blue = torch.stack(means).mean(0).tolist()
    return red, green, blue
