"""``pycc count``: count people in images and folders."""

from __future__ import annotations

import csv
import json
import re
import sys
import warnings
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pycc import counters, metrics
from pycc.commands.base import DONE, Command, Context
from pycc.commands.checks import check_least
from pycc.commands.flags import CounterFlags, DeviceFlags, FolderFlags
from pycc.commands.memory import pixels_within
from pycc.commands.progress import say
from pycc.data.dataset import Dataset, Pair, PairedFiles
from pycc.data.dataset import builtin as builtin_data
from pycc.data.folder import has_annotations, splits_of
from pycc.data.pictures import some
from pycc.data.points import read_points
from pycc.data.worldexpo import polygon
from pycc.grid import heads_in
from pycc.report.overlay import draw_overlay
from pycc.settings import flag, group, no_names
from pycc.types import Counter, Sample


@dataclass(frozen=True)
class ImageFlags(FolderFlags):
    """The options for reading the images."""

    split: str | None = flag(None, "part of each data set (default: all that it has)")
    max_images: int | None = flag(None, "use the first images of each folder only")
    unannotated: bool = flag(False, "ignore head annotations")
    roi: str | None = flag(
        None, "count inside a polygon: a JSON list of [x, y] in pixels, the same for all images",
        metavar="POLYGON.json", names=no_names,
    )  # fmt: skip


@dataclass(frozen=True)
class CountSettings:
    """The images, the counter and the output files."""

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
    """The printed row of one image."""

    path: str
    """Absolute path, or the name of a built-in data set."""
    split: str | None
    """The part of the data set; None for an image, and for a folder without parts."""
    image: str
    count: float
    truth: int | None
    people_per_megapixel: float
    """Per million pixels of the image, or of its region of interest."""
    seconds: float


@dataclass(frozen=True)
class Totals:
    """The printed totals below the rows."""

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
    shared = True

    def check(self, settings: CountSettings, given: frozenset[str]) -> CountSettings:
        """Refuse two formats at once, and a limit that holds nothing; warn of photographs that
        the built-in counter of drawn scenes counts because no other was named."""
        if settings.csv and settings.json:
            raise ValueError("--csv: expected no --json beside it")
        if settings.max_memory is not None and not settings.max_memory > 0:
            raise ValueError(f"--max-memory must be above 0 GB, got {settings.max_memory:g}")
        check_least("max_images", settings.images.max_images, 1)
        photographs = [path for path in settings.path if path not in builtin_data.names()]
        if photographs and not {"weights", "model"} & given:
            warnings.warn(
                f"--weights: none given; the built-in {settings.counter.weights} counts drawn "
                f"people, not those of {photographs[0]}",
                stacklevel=2,
            )
        return settings

    def run(self, settings: CountSettings, context: Context) -> int:
        """Count and print; several processes share the images."""
        counter = settings.counter.load(context.device).eval()
        vertices = None if settings.images.roi is None else _polygon(Path(settings.images.roi))
        sources = [source for path in settings.path for source in _sources(path, settings.images)]
        jobs = [(source, n) for source in sources for n in range(len(source.samples))]
        if not jobs:
            raise ValueError(f"{', '.join(settings.path)}: no image can be read")
        if context.ranks.first:
            _warn_of_repeated(sources)
        overlays: list[Path | None] = [None] * len(jobs)
        if settings.overlay is not None:
            overlays = [*_overlays(Path(settings.overlay), jobs)]
        rows: list[Row] = []
        with context.progress("images") as progress:
            mine = context.ranks.share([*zip(jobs, overlays, strict=True)])
            for done, ((source, index), overlay) in enumerate(mine):
                sample = _chosen(source.samples[index], vertices, settings.images.unannotated)
                if progress is not None:
                    progress(done, len(mine), f"counting {sample.name}")
                rows.append(_row(counter, source, sample, settings, overlay))
        rows = context.ranks.gathered(rows)
        if context.ranks.first:
            _print(rows, settings)
        return DONE


command = CountCommand()


@dataclass(frozen=True)
class _Source:
    """The samples of one path, or of one split of it."""

    path: str
    split: str | None
    samples: Dataset

    @property
    def files(self) -> list[Path]:
        """The image files; none for scenes that are drawn."""
        pairs = self.samples.pairs if isinstance(self.samples, PairedFiles) else []
        return [pair.image for pair in pairs]

    def stem(self, index: int) -> str:
        """A file name for a picture of a sample, without suffix; two samples may have the same."""
        if Path(self.path).is_file():
            return Path(self.path).stem
        folder = Path(self.path).resolve().name
        words = (folder, self.split or "", self.samples.names[index])
        return "-".join(re.findall(r"[\w.]+", " ".join(words)))


def _sources(path: str, flags: ImageFlags) -> Iterator[_Source]:
    """The samples of a path: one image, or each split of a folder."""
    built_in = path in builtin_data.names()
    if not built_in and Path(path).is_file():
        pair = Pair(Path(path).name, Path(path))
        picture = PairedFiles(path, [pair], read_points, reading=flags)
        yield _Source(path, None, picture.usable(1) if flags.on_error == "skip" else picture)
        return
    if flags.split is not None:
        splits: Sequence[str] = (flags.split,)
    else:
        splits = ("test",) if built_in else splits_of(Path(path))
    for split in splits:
        annotated = built_in or (not flags.unannotated and has_annotations(Path(path), split))
        samples = flags.opened(path, split, flags.max_images, annotated=annotated)
        yield _Source(path, split if len(splits) > 1 else None, samples)


def _warn_of_repeated(sources: Sequence[_Source]) -> None:
    """Warn of images that several paths name: each of them is counted, and the totals add them."""
    named = Tally(file.resolve() for source in sources for file in source.files)
    repeated = [file.name for file, times in named.items() if times > 1]
    if repeated:
        warnings.warn(
            f"counted each time that it is named: {some(repeated)}; totals contain it as often",
            stacklevel=2,
        )


def _overlays(folder: Path, jobs: Sequence[tuple[_Source, int]]) -> Iterator[Path]:
    """Make the folder; yield the file of each picture. Equal names get numbers from 2 on."""
    read = {file.resolve().parent for source, _ in jobs for file in source.files}
    if folder.resolve() in read:
        raise ValueError(
            f"--overlay {folder}: expected a folder without the images that are counted, so that "
            "none is overwritten or counted as one of them next time"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--overlay {folder}: expected a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    taken: Tally[str] = Tally()
    for source, index in jobs:
        stem = name = source.stem(index)
        while taken[name.casefold()]:  # some file systems do not tell upper from lower case
            taken[stem.casefold()] += 1
            name = f"{stem}-{taken[stem.casefold()]}"
        taken[name.casefold()] += 1
        yield folder / f"{name}.png"


def _polygon(file: Path) -> torch.Tensor:
    vertices = read_points(file)
    if len(vertices) < 3:
        raise ValueError(f"{file}: a polygon needs 3 points [x, y] or more, got {len(vertices)}")
    return torch.from_numpy(vertices)


def _chosen(sample: Sample, vertices: torch.Tensor | None, unannotated: bool) -> Sample:
    """The sample with a polygon as its region of interest, inside the one that it has."""
    if unannotated:
        sample = replace(sample, points=None)
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
    overlay: Path | None,
) -> Row:  # fmt: skip
    limit = None
    if settings.max_memory is not None:
        limit = pixels_within(settings.max_memory, counter, sample)
    (counted,) = counters.count(counter, [sample], max_pixels=limit)
    if overlay is not None:
        heads = counters.heads_of(counter, sample)
        draw_overlay(overlay, sample.image, counted.density, counter.stride, heads=heads)
    pixels = sample.image[0].numel() if sample.roi is None else int(sample.roi.sum())
    return Row(
        source.path, source.split, sample.name, counted.count, counted.truth,
        1e6 * counted.count / pixels, counted.seconds,
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
    titles = [row.path if row.split is None else f"{row.path}, {row.split}" for row in rows]
    before = None
    for row, title in zip(rows, titles, strict=True):
        if title != before and len({*titles}) > 1:
            print(f"{title}:")
        before = title
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
