"""Write data sets as folders of files, in a layout that pycc and the published code read."""

from __future__ import annotations

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
import torch
from PIL import Image

from pycc.data.dataset import NotAnnotatedError, OnError, PairedFiles
from pycc.data.folder import layout_of, open_folder
from pycc.data.images import is_rescaled, is_upright, quantize, save_image
from pycc.data.outside import Show, hide_outside
from pycc.data.reading import USUAL, Reading
from pycc.data.target import Picture, Target, targets
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


_JPEG = (".jpeg", ".jpe", ".jfif")
"""Suffixes of JPEG files that readers may not know: written as .jpg."""


def export(
    root: Path,
    out: Path,
    *,
    split: str | None = None,
    layout: str = "folder",
    limit: int | None = None,
    max_side: int | None = None,
    outside: Show = "keep",
    on_error: OnError = "raise",
    reading: Reading = USUAL,
    progress: Progress | None = None,
) -> list[Written]:
    """Write one split of a folder, or all of them, into a new or empty folder ``out``.

    ``folder``: ``SPLIT/NAME.png`` with ``NAME.json``, which ``pycc.data.open`` reads by split.
    ``shanghaitech``: ``SPLIT_data/images/IMG_n.png`` with ``ground-truth/GT_IMG_n.mat``, numbered
    from 1 in the samples' order. The layouts of labelling tools and of P2PNet keep the samples'
    names; the page of data formats shows their files. An image file is copied byte for byte if the
    layout has its suffix, it is upright, not too large and not rescaled by the bit depth of
    ``reading`` (how image files are read). All others become 8-bit PNG. ``max_side`` (pixels)
    shrinks images whose longer side exceeds it, and moves their points, with Lanczos' filter, as is
    usual for UCF-QNRF. ``limit`` keeps the first samples of each split.

    No layout stores a region of interest: ``outside`` ``"black"`` or ``"blur"`` hides the people
    outside it (``pycc.data.outside``).

    The folder appears complete or not at all. ValueError naming the problem: a broken input, an
    ``out`` that is not empty, or samples with a region whose outside is to be kept. A split
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
            resized, pictures = 0, list[Picture]()
            for index, pair in enumerate(samples.pairs):
                read = samples[index]
                original = _without_region(read, outside)
                sample = shrink(original, max_side)
                unchanged = sample is read and not is_rescaled(pair.image, reading)
                unchanged = unchanged and is_upright(pair.image, reading)
                save = partial(_save_or_copy, target, sample, pair.image, unchanged)
                source = str(pair.image)
                pictures.append(_write(target, draft / folder, index + 1, sample, source, save))
                resized += sample is not original
                done += 1
                if progress is not None:
                    progress(done, total, f"{split_name} {pair.name}")
            _write_table(target, draft, split_name, pictures)
            heads = sum(len(picture.points) for picture in pictures)
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
            pictures: list[Picture] = []
            for index in range(len(samples)):
                sample = samples[index]
                _check_name(sample.name, names, target)
                save = partial(_save_png if lossless else _save_jpeg, sample)
                pictures.append(
                    _write(target, draft / folder, index + 1, sample, sample.name, save)
                )
                names.add(sample.name)
                heads[split].append(sample.count)
                done += 1
                if progress is not None:
                    progress(done, total, f"{split} {sample.name}")
            _write_table(target, draft, split, pictures)
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
    save: Callable[[Path], Path],
) -> Picture:
    """Write sample ``number`` of a split; ``save(path without suffix)`` writes its image file."""
    if not sample.annotated:
        raise ValueError(f"{source}: not annotated, and exported layouts hold points")
    if sample.roi is not None:
        raise ValueError(
            f"{source}: has a region of interest, which no exported layout stores; without it "
            "other people would count; outside (--outside-roi) black or blur hides them"
        )
    image = folder / target.image.format(name=sample.name, number=number)
    image.parent.mkdir(parents=True, exist_ok=True)
    height, width = sample.image.shape[1:]
    picture = Picture(save(image), height, width, sample.points.tolist())
    if target.write is not None:
        points = folder / target.points.format(name=sample.name, number=number)
        points.parent.mkdir(parents=True, exist_ok=True)
        target.write(points, picture)
    return picture


def _without_region(sample: Sample, outside: Show) -> Sample:
    """Return a sample of a whole image whose people outside its region are hidden, if requested."""
    if sample.roi is None or outside == "keep":
        return sample
    points = sample.points if sample.annotated else None
    return Sample(sample.name, hide_outside(sample, outside).image, points)


def _write_table(target: Target, draft: Path, split: str, pictures: Sequence[Picture]) -> None:
    """Write the file of all images of a split, if the layout has one."""
    if target.write_table is not None:
        path = draft / target.table.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        target.write_table(path, pictures)


def _save_or_copy(
    target: Target, sample: Sample, source: Path, unchanged: bool, image: Path
) -> Path:
    """Copy the file that the sample was read from if it can stay unchanged; else write PNG."""
    suffix = source.suffix.lower()
    suffix = ".jpg" if suffix in _JPEG else suffix
    if unchanged and (target.kept is None or suffix in target.kept):
        return Path(shutil.copyfile(source, image.with_name(image.name + suffix)))
    return _save_png(sample, image)


def _save_png(sample: Sample, image: Path) -> Path:
    file = image.with_name(f"{image.name}.png")
    save_image(file, sample.image)
    return file


def _save_jpeg(sample: Sample, image: Path) -> Path:
    file = image.with_name(f"{image.name}.jpg")
    _picture(sample).save(file, format="JPEG", quality=100, subsampling=0)
    return file


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
