"""What a data set consists of, what in it is broken, and which images it holds twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pycc.data.dataset import NotAnnotatedError, PairedFiles
from pycc.data.folder import layout_of
from pycc.data.reading import USUAL, Reading
from pycc.types import Sample

Progress = Callable[[float, float, str], None]
"""(done, total, label): how many images are through."""


@dataclass(frozen=True)
class Item:
    """What is kept of a sample that is whole."""

    name: str
    heads: int
    """Those that count: inside the image, and inside its region of interest where it has one."""
    outside: int
    """Annotated points outside the image."""
    height: int
    width: int
    grey: bool
    """Whether no pixel has a colour."""
    region: bool
    """Whether it has a region of interest."""
    pixels: str
    """SHA-256 of the decoded pixels and their shape."""


@dataclass(frozen=True)
class Split:
    """One split of a data set."""

    name: str
    items: Sequence[Item]
    broken: Sequence[str]
    """What is wrong, once for each item that is not whole; names the file."""
    not_annotated: str | None = None
    """Why nothing of the split can be read, where it was published without annotation."""

    def facts(self) -> dict[str, object]:
        """The split as figures, ready for JSON; what no image tells is None."""
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
    """A data set, looked through."""

    path: str
    layout: str
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
    def whole(self) -> bool:
        """Whether nothing is broken and no image is there twice."""
        return not self.identical and not any(split.broken for split in self.splits)

    def facts(self) -> dict[str, object]:
        """The report, ready for JSON."""
        return {
            "path": self.path,
            "layout": self.layout,
            "splits": {split.name: split.facts() for split in self.splits},
            "identical": [
                [{"split": split, "name": name} for split, name in group]
                for group in self.identical
            ],
            "whole": self.whole,
        }


def inspect(
    root: Path,
    *,
    split: str | None = None,
    reading: Reading = USUAL,
    progress: Progress | None = None,
) -> Report:
    """Read all images and annotations of a folder: of one split, or of all that it has.

    ``reading`` is how picture files are read. What is broken is collected; ValueError only if the
    folder is no data set, or if no split of it can be opened.
    """
    layout_name, layout = layout_of(root)
    wanted = layout.splits(root) if split is None else (split,)
    broken: dict[str, list[str]] = {each: [] for each in wanted}
    files: dict[str, PairedFiles] = {}
    failed: dict[str, ValueError] = {}
    for each in wanted:
        try:
            files[each] = layout.open(root, split=each, refuse=broken[each].append)
            files[each].reading = reading
        except ValueError as error:
            failed[each] = error
    if not files:
        raise next(iter(failed.values()), ValueError(f"{root}: none of its splits is there"))
    total, done = sum(map(len, files.values())), 0
    splits = []
    for each in wanted:
        items = []
        for index, name in enumerate(files[each].names if each in files else ()):
            try:
                items.append(_item(*files[each].examine(index)))
            except ValueError as error:
                broken[each].append(str(error))
            done += 1
            if progress is not None:
                progress(done, total, f"{each} {name}")
        reason = str(failed[each]) if each in failed else None
        unpublished = isinstance(failed.get(each), NotAnnotatedError)
        if reason is not None and not unpublished:
            broken[each].append(reason)
        splits.append(Split(each, items, broken[each], reason if unpublished else None))
    return Report(str(root), layout_name, splits)


def table(report: Report) -> str:
    """The report as lines of text: a column of figures a split, then what is wrong."""
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
        kind = "twice" if len({split for split, _ in group}) == 1 else "leak"
        lines.append(f"{kind}: {' = '.join(f'{split} {name}' for split, name in group)}")
    broken = sum(len(split.broken) for split in report.splits)
    twice = len(report.identical)
    verdict = "whole" if report.whole else f"{broken} broken, {twice} there more than once"
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
    """Smallest and largest of some values, once where they are equal."""
    ends = sorted({min(values), max(values)}) if values else []
    return "…".join(f"{end:,}" for end in ends) or "-"


def _middle(values: Sequence[int]) -> str:
    return f"{median(values):,.10g}" if values else "-"


_ROWS: list[tuple[str, Callable[[Split], str]]] = [
    ("images", lambda split: f"{len(split.items):,}"),
    ("heads", lambda split: f"{sum(item.heads for item in split.items):,}"),
    ("heads an image", lambda split: _span([item.heads for item in split.items])),
    ("median", lambda split: _middle([item.heads for item in split.items])),
    ("width", lambda split: _span([item.width for item in split.items])),
    ("height", lambda split: _span([item.height for item in split.items])),
    ("grey images", lambda split: f"{sum(item.grey for item in split.items):,}"),
    ("images without heads", lambda split: f"{sum(not item.heads for item in split.items):,}"),
    ("points outside images", lambda split: f"{sum(item.outside for item in split.items):,}"),
    ("with region of interest", lambda split: f"{sum(item.region for item in split.items):,}"),
    ("broken", lambda split: f"{len(split.broken):,}"),
]
"""Rows of the table: what they are called, and what they say of a split."""
