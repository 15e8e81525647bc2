"""Inspect a data set: its figures, its broken items, and images that occur more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pycc.data.dataset import NotAnnotatedError, PairedFiles
from pycc.data.folder import Folder, layout_of
from pycc.data.reading import USUAL, Reading
from pycc.ranks import Ranks
from pycc.types import Progress, Sample


@dataclass(frozen=True)
class Item:
    """The figures of one intact sample."""

    name: str
    heads: int
    """Heads that count: inside the image and, if there is one, inside its region of interest."""
    outside: int
    """Annotated points outside the image."""
    height: int
    width: int
    grey: bool
    """Whether R, G and B are equal in every pixel."""
    region: bool
    """Whether it has a region of interest."""
    pixels: str
    """SHA-256 of the decoded pixels and their shape."""


@dataclass(frozen=True)
class Split:
    """The figures of one split of a data set."""

    name: str
    items: Sequence[Item]
    broken: Sequence[str]
    """One problem for each broken item; names the file."""
    not_annotated: str | None = None
    """Why the split cannot be read, if it was published without annotation."""

    def json(self) -> dict[str, object]:
        """Return the figures, ready for JSON; a figure without images is None."""
        heads = [item.heads for item in self.items]
        return {
            "images": len(self.items),
            "heads": {
                "total": sum(heads),
                "median": median(heads) if heads else None,
                **_range(heads),
            },
            "width": _range([item.width for item in self.items]),
            "height": _range([item.height for item in self.items]),
            "grey": sum(item.grey for item in self.items),
            "without_heads": heads.count(0),
            "points_outside": sum(item.outside for item in self.items),
            "with_region": sum(item.region for item in self.items),
            "broken": list(self.broken),
            "not_annotated": self.not_annotated,
        }


@dataclass(frozen=True)
class Report:
    """The result of an inspection."""

    path: str
    layout: str
    """The format that was recognised; ``folder`` for a plain one."""
    splits: Sequence[Split]

    @property
    def identical(self) -> list[list[tuple[str, str]]]:
        """Groups of images, each (split, name), whose decoded pixels are equal."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for split in self.splits:
            for item in split.items:
                groups.setdefault(item.pixels, []).append((split.name, item.name))
        return [group for group in groups.values() if len(group) > 1]

    @property
    def intact(self) -> bool:
        """Whether nothing is broken and no image occurs more than once."""
        return not self.identical and not any(split.broken for split in self.splits)

    def json(self) -> dict[str, object]:
        """Return the report, ready for JSON."""
        return {
            "path": self.path,
            "layout": self.layout,
            "splits": {split.name: split.json() for split in self.splits},
            "identical": [
                [{"split": split, "name": name} for split, name in group]
                for group in self.identical
            ],
            "intact": self.intact,
        }


def inspect(
    root: Path,
    *,
    split: str | None = None,
    reading: Reading = USUAL,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
) -> Report:
    """Read all images and annotations of a folder: of one split, or of all its splits.

    ``reading`` is how image files are read. Broken items are collected. ``ranks`` are the processes
    of torchrun, which share the images; each of them gets the whole report. ValueError only if the
    folder is not a data set, or if none of its splits can be opened.
    """
    layout_name, layout = layout_of(root)
    wanted = layout.splits(root) if split is None else (split,)
    broken: dict[str, list[str]] = {name: [] for name in wanted}
    files: dict[str, PairedFiles] = {}
    failed: dict[str, ValueError] = {}
    for name in wanted:
        try:
            files[name] = layout.open(root, split=name, refuse=broken[name].append)
            files[name].reading = reading
        except ValueError as error:
            failed[name] = error
    if not files:
        raise next(iter(failed.values()), ValueError(f"{root}: none of its splits exists"))
    items: dict[str, list[Item]] = {name: [] for name in wanted}
    for name, result in _examined(files, progress, ranks):
        if isinstance(result, Item):
            items[name].append(result)
        else:
            broken[name].append(result)
    splits = []
    for name in wanted:
        reason = str(failed[name]) if name in failed else None
        unpublished = isinstance(failed.get(name), NotAnnotatedError)
        if reason is not None and not unpublished:
            broken[name].append(reason)
        splits.append(Split(name, items[name], broken[name], reason if unpublished else None))
    if isinstance(layout, Folder):
        layout_name = _format(layout, files.values())
    return Report(str(root), layout_name, splits)


def _examined(
    files: Mapping[str, PairedFiles], progress: Progress | None, ranks: Ranks
) -> list[tuple[str, Item | str]]:
    """For each image of all processes, in order: its split, and its figures or its problem."""
    mine = ranks.share([(name, n) for name in files for n in range(len(files[name]))])
    results: list[tuple[str, Item | str]] = []
    for name, index in mine:
        try:
            results.append((name, _item(*files[name].examine(index))))
        except ValueError as error:
            results.append((name, str(error)))
        if progress is not None:
            progress(len(results), len(mine), f"{name} {files[name].names[index]}")
    return ranks.gathered(results)


def _format(layout: Folder, files: Iterable[PairedFiles]) -> str:
    """Return the layout of a folder, or the formats of its points if they are not plain ones."""
    kinds = set[str]().union(*map(layout.kinds, files)) - {"csv", "json"}
    return ", ".join(sorted(kinds)) or "folder"


def table(report: Report) -> str:
    """Format the report as lines of text: one column of figures per split, then the problems."""
    columns = [["", *(label for label, _ in _ROWS)]]
    columns += [[split.name, *(show(split) for _, show in _ROWS)] for split in report.splits]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        for cells in zip(*columns, strict=True)
    ]
    lines = [f"{report.path}, layout {report.layout}", *lines]
    for split in report.splits:
        if split.not_annotated is not None:
            lines.append(f"not annotated: {split.name}: {split.not_annotated}")
        lines += [f"broken: {split.name}: {problem}" for problem in split.broken]
    for group in report.identical:
        kind = "repeated" if len({split for split, _ in group}) == 1 else "leak"
        lines.append(f"{kind}: {' = '.join(f'{split} {name}' for split, name in group)}")
    broken = sum(len(split.broken) for split in report.splits)
    repeated = len(report.identical)
    verdict = "intact" if report.intact else f"{broken} broken, {repeated} more than once"
    return "\n".join([*lines, f"verdict: {verdict}"])


def _item(sample: Sample, outside: int) -> Item:
    image = sample.image
    _, height, width = image.shape
    digest = hashlib.sha256(f"{height} {width} ".encode())
    digest.update(image.contiguous().numpy().data)
    return Item(
        name=sample.name,
        heads=sample.count,
        outside=outside,
        height=height,
        width=width,
        grey=bool((image == image[:1]).all()),
        region=sample.roi is not None,
        pixels=digest.hexdigest(),
    )


def _range(values: Sequence[int]) -> dict[str, int | None]:
    return {"min": min(values, default=None), "max": max(values, default=None)}


def _span(values: Sequence[int]) -> str:
    """Format the smallest and largest value, as one number if they are equal."""
    ends = sorted({min(values), max(values)}) if values else []
    return "…".join(f"{end:,}" for end in ends) or "-"


def _middle(values: Sequence[int]) -> str:
    return f"{median(values):,.10g}" if values else "-"


_ROWS: list[tuple[str, Callable[[Split], str]]] = [
    ("images", lambda split: f"{len(split.items):,}"),
    ("heads", lambda split: f"{sum(item.heads for item in split.items):,}"),
    ("heads per image", lambda split: _span([item.heads for item in split.items])),
    ("median", lambda split: _middle([item.heads for item in split.items])),
    ("width", lambda split: _span([item.width for item in split.items])),
    ("height", lambda split: _span([item.height for item in split.items])),
    ("grey images", lambda split: f"{sum(item.grey for item in split.items):,}"),
    ("images without heads", lambda split: f"{sum(not item.heads for item in split.items):,}"),
    ("points outside images", lambda split: f"{sum(item.outside for item in split.items):,}"),
    ("with region of interest", lambda split: f"{sum(item.region for item in split.items):,}"),
    ("broken", lambda split: f"{len(split.broken):,}"),
]
"""Rows of the table: label and value for a split."""
