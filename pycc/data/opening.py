"""Open a data set by path or name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pycc.data.dataset import Dataset, OnError, builtin
from pycc.data.folder import open_folder
from pycc.data.outside import Outside, Show
from pycc.data.reading import MAX_IMAGE_PIXELS, USUAL, Reading


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
    by its name or as ``S1`` to ``S5``), NWPU-Crowd and JHU-Crowd++ (``train``, ``val``, ``test``),
    UCSD and Mall (``train``, ``test``) as published, or any folder of images with points in CSV or
    JSON, or annotated with COCO, VIA, labelme, CVAT and others, whose splits may be folders in it.
    It is checked at once that every image has its annotation; the content of files is read
    when samples are accessed.

    Args:
        path_or_name: the folder, or the name of a built-in data set.
        split: the split of the data set.
        on_error: ``"raise"``: a broken file raises ValueError when its sample is accessed.
            ``"skip"``: everything is read at once, and broken items are left out with one warning
            each.
        limit: keep only the first samples (of the intact ones with ``"skip"``).
        annotated: False opens the images of a folder alone and ignores annotation. The heads of
            such samples are unknown, but they can be counted and attacked.
        outside: what images show outside a region of interest (``pycc.data.outside``): ``"keep"``
            the pixels, ``"black"``, or ``"blur"``, only their low frequencies.
        bit_depth: how 16-bit image files of a folder are read (``load_image``).
        max_image_pixels: pixels of the largest image file of a folder that is read.
        options: of a built-in data set: ``seed``, ``shape``, ``heads`` and ``count`` of the scenes.

    Files that Pillow does not open are left out, with a warning that names them.

    Raises:
        ValueError: names the file or argument that is wrong.
        NotAnnotatedError: the split was published without annotation; a ValueError.

    >>> scenes = open("synthetic", split="test", shape=(96, 128), heads=20, limit=2)
    >>> [sample.count for sample in scenes]
    [20, 20]
    """
    if limit is not None and limit < 1:
        raise ValueError(f"open: limit must be at least 1, got {limit}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"open: on_error must be 'raise' or 'skip', got {on_error!r}")
    reading = Reading(bit_depth, max_image_pixels)
    samples: Dataset
    if isinstance(path_or_name, str) and path_or_name in builtin.names():
        if not annotated:
            raise ValueError(f"open: annotated=False is for folders, {path_or_name} is drawn")
        if reading != USUAL:
            raise ValueError(
                "open: bit_depth (--bit-depth) and max_image_pixels (--max-image-pixels) are for "
                f"image files, {path_or_name} is drawn"
            )
        samples = builtin[path_or_name](split=split, limit=limit, **options)
    elif options:
        raise ValueError(f"open: folders take no option, got {', '.join(options)}")
    else:
        try:
            samples = open_folder(Path(path_or_name), split, on_error, limit, annotated, reading)
        except OSError as error:
            raise ValueError(f"{error.filename}: cannot read: {error.strerror}") from error
    return samples if outside == "keep" else Outside(samples, outside)
