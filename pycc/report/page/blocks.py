"""The blocks of a page, each with a template of its own in ``templates/block``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pycc.report.page.card import Card

UNKNOWN = "-"
"""The text of a cell whose number is unknown."""
Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table; its text may have several lines."""

    text: str
    value: float | None = None
    """The number that its column is sorted by; None for a text."""
    tone: Tone = "plain"


def number(value: float | None, digits: int = 1, *, signed: bool = False, unit: str = "") -> Cell:
    """A cell with a number, or with a dash where it is unknown.

    >>> number(1234.56).text, number(None).text, number(3.0, 0, signed=True, unit=" %").text
    ('1,234.6', '-', '+3 %')
    """
    if value is None:
        return Cell(UNKNOWN)
    sign = "+" if signed else ""
    return Cell(f"{value:{sign},.{digits}f}{unit}", value)


@dataclass(frozen=True)
class Table:
    """A table with a caption; cells with numbers are set to the right."""

    template: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sortable: bool = False
    """Whether a click on a column's head, or the enter key, sorts the rows."""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Return for each column whether it holds numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.head)
        return tuple(any(cell.value is not None for cell in column) for column in columns)


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    template: ClassVar[str] = "text"
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Preformatted:
    """Text in columns, hidden until the reader opens it."""

    template: ClassVar[str] = "preformatted"
    caption: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """An inline SVG, whose colours are those of the page."""

    template: ClassVar[str] = "drawing"
    svg: str
    """Trusted markup: texts in it are escaped by the library that wrote it."""
    label: str
    """A description of the drawing, for readers who do not see it."""
    caption: str


@dataclass(frozen=True)
class Picture:
    """A picture that the run drew."""

    template: ClassVar[str] = "picture"
    uri: str
    width: int
    height: int
    label: str
    caption: str


@dataclass(frozen=True)
class Overlay:
    """A picture over another one: its data and its place, in per cent of that one."""

    uri: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Pair:
    """An image without and with a patch, under a slider.

    The attacked image is the clean one with ``patch`` over it.
    """

    name: str
    clean: str
    """Data of the clean image."""
    width: int
    height: int
    facts: tuple[str, ...]
    """The counts and errors of the image, one per line."""
    patch: Overlay | None
    clean_map: Overlay | None
    """The density map of the clean image."""
    attacked_map: Overlay | None


@dataclass(frozen=True)
class Gallery:
    """Images under sliders, the worst first."""

    template: ClassVar[str] = "gallery"
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def mapped(self) -> bool:
        """Whether density maps can be shown."""
        return any(pair.clean_map is not None for pair in self.pairs)


@dataclass(frozen=True)
class Bar:
    """An interval on the count of one image, beside the truth; places in per cent of the scale."""

    name: str
    truth: Cell
    count: Cell
    interval: str
    left: float
    width: float
    unbounded: bool
    count_at: float
    truth_at: float | None
    tone: Tone = "plain"


@dataclass(frozen=True)
class Bars:
    """Intervals as bars, one row per image."""

    template: ClassVar[str] = "bars"
    caption: str
    bars: tuple[Bar, ...]
    top: str
    """The upper end of the scale, which begins at 0."""
    notes: tuple[str, ...] = ()
    opened: bool = True
    """Whether the bars are open at first."""


@dataclass(frozen=True)
class Facts:
    """Names and values, such as settings."""

    template: ClassVar[str] = "facts"
    caption: str
    entries: tuple[tuple[str, str], ...]


Block = Table | Text | Preformatted | Drawing | Picture | Gallery | Bars | Facts


@dataclass(frozen=True)
class Verdict:
    """The result of a run in one sentence."""

    sentence: str
    tone: Tone = "plain"
    checks: str = ""
    """The outcome of the run's checks, in a few words."""


@dataclass(frozen=True)
class Content:
    """The page of one run, section by section; an empty section is left out."""

    title: str
    verdict: Verdict
    card: Card
    main: tuple[Block, ...] = ()
    curves: tuple[Block, ...] = ()
    gallery: tuple[Block, ...] = ()
    places: tuple[Block, ...] = ()
    shift: tuple[Block, ...] = ()
    alarm: tuple[Block, ...] = ()
    settings: tuple[Block, ...] = field(default=())
