"""``pycc count``: count people in images and folders."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pycc import counters, metrics
from pycc.commands.base import DONE, Command, Context
from pycc.commands.flags import CounterFlags, DeviceFlags
from pycc.commands.memory import pixels_within
from pycc.commands.progress import say
from pycc.data import open as open_data
from pycc.data.dataset import Dataset, OnError
from pycc.data.dataset import builtin as builtin_data
from pycc.data.folder import has_annotations, read_points, splits_of
from pycc.data.images import read_image
from pycc.data.reading import Reading
from pycc.data.worldexpo import polygon
from pycc.grid import heads_in
from pycc.report.overlay import draw_overlay
from pycc.settings import flag, group, no_names
from pycc.types import Counter, Sample


@dataclass(frozen=True)
class ImageFlags(Reading):
    """How the images are read."""

    split: str | None = flag(None, "part of each data set (default: all that it has)")
    max_images: int | None = flag(None, "use the first images of each folder only")
    unannotated: bool = flag(False, "ignore head annotations")
    roi: str | None = flag(
        None, "count inside a polygon: a JSON list of [x, y] in pixels, the same for all images",
        metavar="POLYGON.json", names=no_names,
    )  # fmt: skip
    on_error: OnError = flag(
        "raise", "what to do with broken items", choices=["raise", "skip"], advanced=True
    )


@dataclass(frozen=True)
class CountSettings:
    """What is counted, with what, and what is written."""

    path: tuple[str, ...] = flag(
        help="images, folders of images, or data sets", positional=True, metavar="PATH",
        names=builtin_data.names,
    )  # fmt: skip
    counter: CounterFlags = group(CounterFlags, "counter")
    images: ImageFlags = group(ImageFlags, "images")
    csv: bool = flag(False, "print the rows as CSV")
    json: bool = flag(False, "print rows and totals as JSON")
    overlay: str | None = flag(
        None, "write a picture of each image with its density map and the heads that the map shows "
        "into this folder", metavar="FOLDER", names=no_names,
    )  # fmt: skip
    max_memory: float | None = flag(
        None, "count large images in overlapping tiles, within so many GB for each image",
        metavar="GB",
    )  # fmt: skip
    machine: DeviceFlags = group(DeviceFlags, "machine")


@dataclass(frozen=True)
class Row:
    """What is printed for one image."""

    path: str
    image: str
    count: float
    truth: int | None
    people_per_megapixel: float
    """Per million pixels of the image, or of its region of interest."""
    seconds: float


@dataclass(frozen=True)
class Totals:
    """What is printed below the rows."""

    images: int
    count: float
    annotated: int
    truth: int | None
    mae: float | None
    rmse: float | None
    seconds: float


class CountCommand(Command[CountSettings]):
    """``pycc count``."""

    name = "count"
    summary = "Count people in images, folders of images and data sets."
    settings = CountSettings

    def check(self, settings: CountSettings, given: frozenset[str]) -> CountSettings:
        """Refuse two formats at once, and a limit that holds nothing."""
        if settings.csv and settings.json:
            raise ValueError("--csv: expected no --json beside it")
        if settings.max_memory is not None and not settings.max_memory > 0:
            raise ValueError(f"--max-memory must be above 0 GB, got {settings.max_memory:g}")
        if settings.images.max_images is not None and settings.images.max_images < 1:
            raise ValueError(f"--max-images must be at least 1, got {settings.images.max_images}")
        return settings

    def run(self, settings: CountSettings, context: Context) -> int:
        """Count and print; several processes share the images."""
        counter = settings.counter.load(context.device).eval()
        vertices = None if settings.images.roi is None else _polygon(Path(settings.images.roi))
        sources = [source for path in settings.path for source in _sources(path, settings.images)]
        jobs = [(source, n) for source in sources for n in range(len(source.samples))]
        overlays = None if settings.overlay is None else Path(settings.overlay)
        if overlays is not None:
            overlays.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        with context.progress("images") as progress:
            for done, (source, index) in enumerate(mine := context.ranks.share(jobs)):
                sample = _inside(source.samples[index], vertices)
                if progress is not None:
                    progress(done, len(mine), f"counting {sample.name}")
                rows.append(_row(counter, source, sample, settings, overlays))
        rows = context.ranks.gathered(rows)
        if context.ranks.first:
            _print(rows, settings)
        return DONE


command = CountCommand()


@dataclass(frozen=True)
class _Source:
    """The samples of one path."""

    path: str
    samples: Sequence[Sample]


class _Picture(Sequence[Sample]):
    """One image file as a sequence of one sample."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading = path, reading

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return Sample(self._path.name, read_image(self._path, self._reading), None)


def _sources(path: str, flags: ImageFlags) -> Iterator[_Source]:
    """The samples of a path: one image, or each split of a folder."""
    if path not in builtin_data.names() and Path(path).is_file():
        yield _Source(path, _Picture(Path(path), flags))
        return
    built_in = path in builtin_data.names()
    if flags.split is not None:
        splits: Sequence[str] = (flags.split,)
    else:
        splits = ("test",) if built_in else splits_of(Path(path))
    for split in splits:
        annotated = built_in or (not flags.unannotated and has_annotations(Path(path), split))
        yield _Source(f"{path}, {split}" if len(splits) > 1 else path, _opened(
            path, split, annotated, flags
        ))  # fmt: skip


def _opened(path: str, split: str, annotated: bool, flags: ImageFlags) -> Dataset:
    return open_data(
        path, split=split, on_error=flags.on_error,
        limit=flags.max_images, annotated=annotated, bit_depth=flags.bit_depth,
        max_image_pixels=flags.max_image_pixels,
    )  # fmt: skip


def _polygon(file: Path) -> torch.Tensor:
    vertices = read_points(file)
    if len(vertices) < 3:
        raise ValueError(f"{file}: a polygon needs 3 points [x, y] or more, got {len(vertices)}")
    return torch.from_numpy(vertices)


def _inside(sample: Sample, vertices: torch.Tensor | None) -> Sample:
    """The sample with a polygon as its region of interest, inside the one that it has."""
    if vertices is None:
        return sample
    height, width = sample.image.shape[1:]
    roi = torch.from_numpy(polygon(vertices.numpy(), height, width))
    if sample.roi is not None:
        roi &= sample.roi
    if not roi.any():
        raise ValueError(f"{sample.name}: --roi: no pixel of {height}x{width} lies in the polygon")
    points = sample.points[heads_in(sample.points, roi)] if sample.annotated else None
    return replace(sample, points=points, roi=roi)


def _row(
    counter: Counter, source: _Source, sample: Sample, settings: CountSettings,
    overlays: Path | None,
) -> Row:  # fmt: skip
    limit = None
    if settings.max_memory is not None:
        limit = pixels_within(settings.max_memory, counter, sample)
    (found,) = counters.count(counter, [sample], max_pixels=limit)
    if overlays is not None:
        name = "-".join(re.findall(r"[\w.]+", f"{Path(source.path).name} {Path(sample.name).stem}"))
        draw_overlay(overlays / f"{name}.png", sample.image, found.density, counter.stride)
    pixels = sample.image[0].numel() if sample.roi is None else int(sample.roi.sum())
    return Row(
        source.path, sample.name, found.count, found.truth, 1e6 * found.count / pixels,
        found.seconds,
    )  # fmt: skip


def _totals(rows: Sequence[Row]) -> Totals:
    known = [(row.truth, row.count) for row in rows if row.truth is not None]
    truth, predicted = [float(pair[0]) for pair in known], [pair[1] for pair in known]
    return Totals(
        len(rows), sum(row.count for row in rows), len(known),
        int(sum(truth)) if known else None,
        metrics.mae(truth, predicted) if known else None,
        metrics.rmse(truth, predicted) if known else None,
        sum(row.seconds for row in rows),
    )  # fmt: skip


def _print(rows: Sequence[Row], settings: CountSettings) -> None:
    totals = _totals(rows)
    if settings.json:
        content = {"rows": [asdict(row) for row in rows], "totals": asdict(totals)}
        print(json.dumps(content, indent=1, allow_nan=False), flush=True)
        return
    if settings.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows([asdict(row).values() for row in rows])
        sys.stdout.flush()
        return
    width = max([len("image"), *(len(row.image) for row in rows)])
    print(f"{'image':{width}}  {'count':>10}  {'truth':>8}  {'people/MP':>10}  {'seconds':>8}")
    path = None
    for row in rows:
        if row.path != path and len({row.path for row in rows}) > 1:
            print(f"{row.path}:")
        path = row.path
        truth = "-" if row.truth is None else f"{row.truth:,}"
        print(
            f"{row.image:{width}}  {row.count:10,.1f}  {truth:>8}  "
            f"{row.people_per_megapixel:10,.1f}  {row.seconds:8.3f}"
        )
    line = f"images: {totals.images}; people counted: {totals.count:,.1f}"
    if totals.mae is not None:
        line += (
            f"; annotated: {totals.truth:,} on {totals.annotated}; "
            f"MAE {totals.mae:,.1f}, RMSE {totals.rmse:,.1f}"
        )
    print(f"{line}; {totals.seconds:.1f} s", flush=True)
    if settings.overlay is not None:
        say(f"overlays: {settings.overlay}")
