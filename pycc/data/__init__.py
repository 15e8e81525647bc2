"""Annotated crowd images: published data sets, own folders and built-in scenes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pycc.data import jhu, nwpu, shanghaitech, synthetic, ucf, worldexpo
from pycc.data.dataset import Dataset, NotAnnotatedError, OnError, builtin
from pycc.data.density import density, downsample
from pycc.data.folder import open_folder
from pycc.data.images import load_image, load_opacity, mean_colour, quantize, save_image
from pycc.data.outside import Outside, Show
from pycc.data.reading import MAX_IMAGE_PIXELS, Reading
from pycc.data.subset import apart

__all__ = [
    "Dataset",
    "NotAnnotatedError",
    "apart",
    "density",
    "downsample",
    "jhu",
    "load_image",
    "load_opacity",
    "mean_colour",
    "nwpu",
    "open",
    "quantize",
    "save_image",
    "shanghaitech",
    "synthetic",
    "ucf",
    "worldexpo",
]


def open(
    path_or_name: str | os.PathLike[str],
    *,
    split: str = "test",
    on_error: OnError = "raise",
    limit: int | None = None,
    annotated: bool = True,
    outside: Show = "keep",
    bit_depth: int | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    **options: Any,
) -> Dataset:
    """Open a data set: a folder in a known layout, or a built-in one by name (``"synthetic"``).

    Folders: ShanghaiTech (a part, or one split of it), UCF_CC_50 (splits ``all``, ``test1`` to
    ``test5``, ``train1`` to ``train5``), UCF-QNRF, WorldExpo'10 (``train``, ``test``, a test scene
    by its name or as ``S1`` to ``S5``), NWPU-Crowd and JHU-Crowd++ (``train``, ``val``, ``test``)
    as published, or any folder of images with points in CSV or JSON, whose splits may be folders
    in it. Splits published without annotation raise NotAnnotatedError, a ValueError. Whether every
    image has its annotation is checked at once; contents are read as samples are asked for, and a
    broken one raises ValueError then. With ``on_error="skip"`` all is read at once and what is
    broken is left out, with a warning each.

    ``annotated=False`` opens the images of a folder alone, of whichever layout, whether there is
    an annotation or not: samples that can be counted and attacked, and whose heads are unknown.
    ``outside`` says what images show outside a region of interest (``pycc.data.outside``): what is
    there, or nothing (``black``), or only its low frequencies (``blur``).
    ``bit_depth`` and ``max_image_pixels`` are how picture files are read (``load_image``); drawn
    scenes are none. Files that Pillow does not open are left out, with a warning that names them.
    ``limit`` keeps the first samples (of those that are whole). Options go to built-in data sets:
    ``seed``, ``shape``, ``heads``, ``count`` for the scenes. Raises ValueError naming the file or
    argument that is wrong.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"open: limit must be at least 1, got {limit}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"open: on_error must be 'raise' or 'skip', got {on_error!r}")
    reading = Reading(bit_depth, max_image_pixels)
    if isinstance(path_or_name, str) and path_or_name in builtin.names():
        if not annotated:
            raise ValueError(f"open: annotated=False is for folders, {path_or_name} is drawn")
        found = builtin[path_or_name](split=split, limit=limit, **options)
    elif options:
        raise ValueError(f"open: folders take no option, got {', '.join(options)}")
    else:
        try:
            found = open_folder(Path(path_or_name), split, on_error, limit, annotated, reading)
        except OSError as error:
            raise ValueError(f"{error.filename}: cannot read: {error.strerror}") from error
    return found if outside == "keep" else Outside(found, outside)
