"""Write data sets as folders of files, in a layout that pycc and the published code read."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image

from pycc.data.dataset import NotAnnotatedError, OnError, PairedFiles
from pycc.data.folder import layout_of, open_folder
from pycc.data.images import is_rescaled, is_upright, quantize, save_image
from pycc.data.reading import USUAL, Reading
from pycc.registry import Registry
from pycc.types import Progress, Sample


@dataclass(frozen=True)
class Written:
    """One written split."""

    split: str
    folder: Path
    images: int
    heads: int
    resized: int
    """Images that were larger than ``max_side``."""


@dataclass(frozen=True)
class Target:
    """A layout that can be written."""

    folder: str
    """Path of the folder of a {split}."""
    image: str
    """Path of a sample's image in it, by {name} or {number} (from 1), without suffix."""
    points: str
    """Path of a sample's points in it, by {name} or {number}."""
    kept: frozenset[str] | None
    """Suffixes of image files that its readers accept; None for all that pycc opens."""
    write: Callable[[Path, Sample], None]
    """Writes a sample's points."""


_JPEG = (".jpeg", ".jpe", ".jfif")
"""Suffixes of JPEG files that readers may not know: written as .jpg."""

targets: Registry[Target] = Registry("layout to export")
"""The layouts that can be written."""


def export(
    root: Path,
    out: Path,
    *,
    split: str | None = None,
    layout: str = "folder",
    limit: int | None = None,
    max_side: int | None = None,
    on_error: OnError = "raise",
    reading: Reading = USUAL,
    progress: Progress | None = None,
) -> list[Written]:
    """Write one split of a folder, or all of them, into a new or empty folder ``out``.

    ``folder``: ``SPLIT/NAME.png`` with ``NAME.json``, which ``pycc.data.open`` reads by split.
    ``shanghaitech``: ``SPLIT_data/images/IMG_n.png`` with ``ground-truth/GT_IMG_n.mat``, numbered
    from 1 in the samples' order. An image file is copied byte for byte if the layout has its
    suffix, it is upright, not too large and not rescaled by the bit depth of ``reading`` (how image
    files are read). All others become 8-bit PNG. ``max_side`` (pixels) shrinks images whose longer
    side exceeds it, and moves their points, with Lanczos' filter, as is usual for UCF-QNRF.
    ``limit`` keeps the first samples of each split.

    The folder appears complete or not at all. ValueError naming the problem: a broken input, an
    ``out`` that is not empty, or samples with a region of interest (no layout stores one). A split
    without annotation is left out with a warning, unless there is no other.
    """
    target = targets[layout]
    for name, value in (("limit", limit), ("max_side", max_side)):
        if value is not None and value < 1:
            raise ValueError(f"export: {name} must be at least 1, got {value}")
    if split is not None:
        _check_split(split)
    out = out.resolve()
    with _drafted(out) as draft:
        opened = _open(root, split, on_error, limit, reading)
        total, done = sum(map(len, opened.values())), 0
        written = []
        for split_name, samples in opened.items():
            folder = target.folder.format(split=split_name)
            heads = resized = 0
            for index, pair in enumerate(samples.pairs):
                original = samples[index]
                sample = shrink(original, max_side)
                unchanged = sample is original and not is_rescaled(pair.image, reading)
                unchanged = unchanged and is_upright(pair.image, reading)
                save = partial(_save_or_copy, target, sample, pair.image, unchanged)
                _write(target, draft / folder, index + 1, sample, str(pair.image), save)
                heads += sample.count
                resized += sample is not original
                done += 1
                if progress is not None:
                    progress(done, total, f"{split_name} {pair.name}")
            written.append(Written(split_name, out / folder, len(samples), heads, resized))
    return written


def export_samples(
    splits: Mapping[str, Sequence[Sample]],
    out: Path,
    *,
    layout: str = "folder",
    lossless: bool = True,
    notes: Callable[[Mapping[str, Sequence[int]]], Mapping[str, str]] | None = None,
    progress: Progress | None = None,
) -> list[Written]:
    """Write samples, by split, into a new or empty folder ``out``, as ``export`` does.

    Images become 8-bit PNG: ``pycc.data.open`` reads ``quantize`` of them, bit for bit. With
    ``lossless`` False they become JPEG of quality 100 and full colour resolution, a few 1/255 off,
    since the published code for ShanghaiTech looks for ``*.jpg`` only. ``notes`` is called after
    all samples are written, with the number of heads of each, by split. It returns further files
    for the top folder: their texts by name.

    The folder appears complete or not at all. ValueError as for ``export``, for a split without
    samples, and for sample names that are not unique or, if the layout uses them, not plain file
    names.
    """
    target = targets[layout]
    for split, samples in splits.items():
        _check_split(split)
        if not len(samples):
            raise ValueError(f"export: split {split} must hold at least one sample, got none")
    if not splits:
        raise ValueError("export: expected at least one split, got none")
    out = out.resolve()
    total, done = sum(map(len, splits.values())), 0
    written = []
    heads: dict[str, list[int]] = {split: [] for split in splits}
    with _drafted(out) as draft:
        for split, samples in splits.items():
            folder, names = target.folder.format(split=split), set[str]()
            for index in range(len(samples)):
                sample = samples[index]
                _check_name(sample.name, names, target)
                save = partial(_save_png if lossless else _save_jpeg, sample)
                _write(target, draft / folder, index + 1, sample, sample.name, save)
                names.add(sample.name)
                heads[split].append(sample.count)
                done += 1
                if progress is not None:
                    progress(done, total, f"{split} {sample.name}")
            written.append(Written(split, out / folder, len(samples), sum(heads[split]), 0))
        for name, text in (notes(heads) if notes is not None else {}).items():
            (draft / name).write_text(text, "utf-8")
    return written


@contextmanager
def _drafted(out: Path) -> Iterator[Path]:
    """Yield a draft folder; it becomes ``out``, new or empty, unless something is raised."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or an empty folder")
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_split(split: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise ValueError(f"export: split must be a plain name, got {split!r}")


def _check_name(name: str, before: set[str], target: Target) -> None:
    if name in before:
        raise ValueError(f"export: names of samples must be unique, got {name!r} twice")
    if "{name}" in target.image and not re.fullmatch(r"[^./\\\0][^/\\\0]*", name):
        raise ValueError(f"export: names of samples must be plain names of files, got {name!r}")


def _open(
    root: Path, split: str | None, on_error: OnError, limit: int | None, reading: Reading
) -> dict[str, PairedFiles]:
    """Open the requested split, or all that are annotated."""
    if split is not None:
        return {split: open_folder(root, split, on_error, limit, reading=reading)}
    opened: dict[str, PairedFiles] = {}
    without: list[NotAnnotatedError] = []
    for name in layout_of(root)[1].splits(root):
        try:
            opened[name] = open_folder(root, name, on_error, limit, reading=reading)
        except NotAnnotatedError as error:
            without.append(error)
    if not opened:
        raise next(iter(without), ValueError(f"{root}: none of its splits exists"))
    for reason in without:
        warnings.warn(f"left out: {reason}", stacklevel=3)
    return opened


def _write(
    target: Target,
    folder: Path,
    number: int,
    sample: Sample,
    source: str,
    save: Callable[[Path], None],
) -> None:
    """Write sample ``number`` of a split; ``save(path without suffix)`` writes its image."""
    if not sample.annotated:
        raise ValueError(f"{source}: not annotated, and exported layouts hold points")
    if sample.roi is not None:
        raise ValueError(
            f"{source}: has a region of interest, which no exported layout stores; without it "
            "other people would count"
        )
    image = folder / target.image.format(name=sample.name, number=number)
    points = folder / target.points.format(name=sample.name, number=number)
    for path in (image, points):
        path.parent.mkdir(parents=True, exist_ok=True)
    save(image)
    target.write(points, sample)


def _save_or_copy(
    target: Target, sample: Sample, source: Path, unchanged: bool, image: Path
) -> None:
    """Copy the file that the sample was read from if it can stay unchanged; else write PNG."""
    suffix = source.suffix.lower()
    suffix = ".jpg" if suffix in _JPEG else suffix
    if unchanged and (target.kept is None or suffix in target.kept):
        shutil.copyfile(source, image.with_name(image.name + suffix))
    else:
        _save_png(sample, image)


def _save_png(sample: Sample, image: Path) -> None:
    save_image(image.with_name(f"{image.name}.png"), sample.image)


def _save_jpeg(sample: Sample, image: Path) -> None:
    _picture(sample).save(
        image.with_name(f"{image.name}.jpg"), format="JPEG", quality=100, subsampling=0
    )


def _picture(sample: Sample) -> Image.Image:
    """Return a sample's image in 8 bits."""
    levels = (quantize(sample.image) * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(levels.contiguous().numpy())


def shrink(sample: Sample, max_side: int | None) -> Sample:
    """Return the sample itself, or one whose longer side is ``max_side``, with its points moved."""
    height, width = sample.image.shape[1:]
    if max_side is None or max(height, width) <= max_side:
        return sample
    scale = max_side / max(height, width)
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    smaller = _picture(sample).resize((columns, rows), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.array(smaller)).permute(2, 0, 1) / 255.0
    # In this order no rounding moves a point to the far edge, where it would no longer count:
    # test_no_point_leaves_its_image.
    points = sample.points * torch.tensor([columns, rows]) / torch.tensor([width, height])
    return replace(sample, image=image.contiguous(), points=points)


def _write_json(path: Path, sample: Sample) -> None:
    path.write_text(json.dumps({"points": sample.points.tolist()}) + "\n")


def _write_mat(path: Path, sample: Sample) -> None:
    """Write points as published: image_info{1} holds location [N,2] and number [1,1]."""
    info = np.empty((1, 1), object)
    info[0, 0] = {
        "location": sample.points.numpy(),
        "number": np.array([[float(sample.count)]]),
    }
    scipy.io.savemat(path, {"image_info": info}, do_compression=True)


targets.register("folder")(Target("{split}", "{name}", "{name}.json", None, _write_json))
targets.register("shanghaitech")(
    Target(
        "{split}_data",
        "images/IMG_{number}",
        "ground-truth/GT_IMG_{number}.mat",
        frozenset((".jpg", ".png")),
        _write_mat,
    )
)
