"""Line charts and maps as inline SVG in the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.report.page.blocks import Drawing

_INK, _GRID = "#010203", "#040506"
_COLOURS = ("#0a0b0c", "#0d0e0f", "#101112", "#131415", "#161718", "#191a1b")
"""Placeholders: matplotlib writes them, and the page has its own colours in their place."""
_VARIABLES = {_INK: "--ink", _GRID: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_COLOURS)
}
_DASHES = ("-", "--", "-.", ":")
_SIZE = (4.6, 3.1)
"""Inches; at the width of a phone, letters of 10 points stay legible."""


@dataclass(frozen=True)
class Line:
    """A line of a chart: its points, and the ends of their intervals if there are any."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    points: bool = True
    """Whether the points are marked."""


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    label: str,
    caption: str,
    level: tuple[str, float] | None = None,
    band: tuple[float, float] | None = None,
    log: bool = False,
    zero: bool = True,
) -> Drawing:
    """A chart of lines with a legend; needs matplotlib.

    Args:
        lines: at least one; the colours and dashes of more than six repeat.
        x_label, y_label: what the axes show, with the unit.
        label: what the chart shows, for readers who do not see it.
        caption: the text below.
        level: name and height of a horizontal line.
        band: ends of a shaded part of the horizontal axis.
        log: a logarithmic vertical axis.
        zero: whether a linear vertical axis begins at 0.

    >>> chart = line_chart([Line("loss", (1, 2), (3.0, 2.0))], x_label="epoch", y_label="loss",
    ...                    label="The loss falls.", caption="Loss by epoch.")
    >>> chart.svg.startswith("<svg"), "var(--series-0)" in chart.svg
    (True, True)
    """
    with _figure(_SIZE) as (figure, axes):
        for number, line in enumerate(lines):
            colour = _COLOURS[number % len(_COLOURS)]
            style = _DASHES[number % len(_DASHES)]
            marker = "o" if line.points else ""
            axes.plot(line.x, line.y, style, marker=marker, color=colour, label=line.label,
                      markersize=4, linewidth=1.8)  # fmt: skip
            if line.low and line.high and len(line.x) > 1:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18,
                                  linewidth=0)  # fmt: skip
            elif line.low and line.high:
                axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.4)
        if level is not None:
            axes.axhline(level[1], color=_INK, linestyle=":", linewidth=1.2, label=level[0])
        if band is not None:
            axes.axvspan(*band, color=_INK, alpha=0.12, linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        if log:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        elif zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if len(lines) > 1 or level is not None:
            axes.legend(fontsize=9, frameon=False)
        return Drawing(_svg(figure, caption), label, caption)


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with numbers, not with powers that only matplotlib typesets."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class Patch:
    """A patch in the unit square, x to the right and y down."""

    left: float
    top: float
    width: float
    height: float


def place_map(
    heat: NDArray[np.float64] | None, patches: Sequence[Patch], *, unit: str, label: str,
    caption: str, ratio: float = 0.75,
) -> Drawing:  # fmt: skip
    """Draw the places of patches in images of one size, over ``heat`` [rows,columns] if known.

    ``ratio`` is height over width. Needs matplotlib.
    """
    with _figure((_SIZE[0], _SIZE[0] * ratio + 0.4)) as (figure, axes):
        if heat is not None:
            far = max(float(np.abs(heat).max()), 1e-9)
            rows, columns = heat.shape
            shown = axes.pcolormesh(
                np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1), heat,
                cmap=_less_and_more(), vmin=-far, vmax=far,
            )  # fmt: skip
            bar = figure.colorbar(shown, ax=axes, label=unit, shrink=0.75, pad=0.02)
            bar.outline.set_edgecolor(_GRID)
        for patch in patches:
            x = (patch.left, patch.left + patch.width, patch.left + patch.width, patch.left)
            y = (patch.top, patch.top, patch.top + patch.height, patch.top + patch.height)
            axes.fill(x, y, fill=False, edgecolor=_INK, linewidth=1.0, alpha=0.8)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect=ratio)
        axes.grid(False)
        return Drawing(_svg(figure, caption), label, caption)


def _less_and_more() -> Any:
    """Blue below 0 and red above it, transparent at 0, so that it suits light and dark pages."""
    from matplotlib.colors import LinearSegmentedColormap

    blue, red = (0.15, 0.45, 0.9), (0.85, 0.2, 0.1)
    colours = [(*blue, 1.0), (*blue, 0.0), (*red, 0.0), (*red, 1.0)]
    places = (0.0, 0.5, 0.5, 1.0)
    return LinearSegmentedColormap.from_list("shift", [*zip(places, colours, strict=True)])


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, in placeholders for the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "text.parse_math": False, "font.size": 10, "text.color": _INK,
        "axes.labelcolor": _INK, "axes.edgecolor": _GRID, "xtick.color": _INK,
        "ytick.color": _INK, "xtick.labelsize": 9, "ytick.labelsize": 9, "grid.color": _GRID,
        "axes.grid": True, "grid.linewidth": 0.6, "axes.spines.top": False,
        "axes.spines.right": False, "axes.facecolor": "none", "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks: the page has fonts itself
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Any, salt: str) -> str:
    """The figure as an SVG element of its own colours; identical for identical figures."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        unknown = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=unknown)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # Names of groups would be those of other figures of the page, too.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.strip()
