"""Figures of a backdoor experiment: densities of ratios, ROC curves, Grad-CAMs, density maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycc.metrics.detection import Roc
from pycc.metrics.rates import BANDWIDTH, kde
from pycc.report.figures import save_figure
from pycc.report.pictures import missing_library

_COLOURS = ("0.45", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Grey for the clean model, then Okabe and Ito's colours, which colour-blind readers can tell
apart."""
_PLAIN = "clean model"
_STYLES = ("-", "--", "-.", ":")
_COLUMN = 4.0
"""Inches of one panel."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One image and a map over it."""

    title: str
    image: NDArray[np.float32]
    """[H,W,3], RGB in [0,1]."""
    cells: NDArray[np.float32]
    """[h,w]: people per cell, or a heat map in [0,1]."""


def draw_kde(
    panels: Mapping[tuple[str, str], Mapping[str, ArrayLike]],
    file: Path,
    *,
    bandwidth: float = BANDWIDTH,
    title: str = "",
) -> None:
    """Draw densities of the ratios r: panels by row and column, in each one curve per strategy.

    ``panels`` are as ``pycc.backdoor.distributions`` returns them: a row of clean images
    above one of triggered ones, a column for the attacked counter and for each defense. The place
    of a missing panel stays empty. All panels have one scale; ratios that count as accurate are
    shaded; the legend gives the number of ratios beyond the axis. ValueError without matplotlib or
    panels, and as for ``kde``.
    """
    _check("draw_kde", panels)
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(key[side] for key in panels)) for side in (0, 1))
    size = (5.6 * len(columns), 3.4 * len(rows) + 0.5)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    every = np.concatenate(
        [np.asarray(r, np.float64) for curves in panels.values() for r in curves.values()]
    )
    # A few counts of almost empty images may be tens of times the truth.
    far = max(1.0, float(np.quantile(every, 0.99)))
    near = min(1.0, float(np.quantile(every, 0.01)))
    grid = np.linspace(near - 3 * bandwidth, far + 3 * bandwidth, 512)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    looks = _looks(names)
    for axis, place in zip(axes.flat, itertools.product(rows, columns), strict=True):
        if place not in panels:
            axis.set_axis_off()
            continue
        curves = panels[place]
        axis.axvspan(0.9, 1.1, color="0.9", zorder=0)
        axis.axvline(1.0, color="0.6", linewidth=0.8, zorder=1)
        for name, r in curves.items():
            values = np.asarray(r, np.float64)
            beyond = int(((values < grid[0]) | (values > grid[-1])).sum())
            label = name if not beyond else f"{name} ({beyond} of {len(values)} beyond)"
            look, density = looks[name], kde(values, grid, bandwidth)
            axis.plot(
                grid, density, label=label, linewidth=1.6, color=look.colour, linestyle=look.dashes
            )
        axis.set_title(f"{place[1]}: {place[0]}", fontsize=12)
        axis.set_xlim(grid[0], grid[-1])
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=9)
        axis.tick_params(labelsize=10)
    figure.supxlabel(
        f"ratio r of predicted to true count (Gaussian kernel, bandwidth {bandwidth:g})",
        fontsize=11,
    )
    figure.supylabel("density", fontsize=11)
    if title:
        figure.suptitle(title, fontsize=13)
    save_figure(figure, file)


def draw_roc(curves: Mapping[str, Roc], file: Path, *, title: str = "") -> None:
    """Draw ROC curves of detectors by name, with their areas; the dotted line is chance.

    ValueError without matplotlib or curves.
    """
    _check("draw_roc", curves)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1.0)
    looks = _looks(list(curves))
    for name, curve in curves.items():
        label = f"{name}: AUC {curve.auc:.3f}"
        look = looks[name]
        axis.plot(
            *curve.rates(), label=label, linewidth=1.6, color=look.colour, linestyle=look.dashes
        )
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.set_xlabel("clean images flagged", fontsize=11)
    axis.set_ylabel("triggered images flagged", fontsize=11)
    axis.legend(loc="lower right", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=13)
    save_figure(figure, file)


def draw_gradcam(rows: Mapping[str, Sequence[Panel]], file: Path, *, title: str = "") -> None:
    """Draw Grad-CAMs over their images, one row per layer (or strategy), by name.

    The panels of a row are clean, triggered, defended. Each map is in [0,1] of its own maximum, so
    titles should state the maxima. ValueError without matplotlib or panels, for rows of different
    lengths and for maps outside [0,1].
    """
    _check("draw_gradcam", rows)
    columns = len(next(iter(rows.values())))
    if columns == 0 or any(len(panels) != columns for panels in rows.values()):
        lengths = [len(panels) for panels in rows.values()]
        raise ValueError(f"draw_gradcam: rows must be of one length above 0, got {lengths}")
    for panel in (panel for panels in rows.values() for panel in panels):
        if not (panel.cells.min() >= 0 and panel.cells.max() <= 1):
            raise ValueError(
                f"draw_gradcam: cells must be within [0,1], got {panel.cells.min():g}"
                f"…{panel.cells.max():g} for {panel.title!r}"
            )
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    height, width = next(iter(rows.values()))[0].image.shape[:2]
    size = (_COLUMN * columns + 1.2, len(rows) * (_COLUMN * height / width + 0.45) + 0.5)
    norm = PowerNorm(0.5, 0.0, 1.0)  # few pixels are near the maximum
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, panels) in zip(axes, rows.items(), strict=True):
        for axis, panel in zip(line, panels, strict=True):
            tall, wide = panel.image.shape[:2]
            # A grey image, so that all colour is the map's.
            axis.imshow(panel.image.mean(2), cmap="gray", vmin=0, vmax=1)
            axis.imshow(
                panel.cells, cmap="inferno", norm=norm, alpha=0.55, extent=(0, wide, tall, 0)
            )
            _finish(axis, panel)
        line[0].set_ylabel(name, fontsize=12)
    bar = figure.colorbar(
        ScalarMappable(norm, "inferno"), ax=axes.ravel().tolist(), shrink=0.8, pad=0.01
    )
    bar.set_label("contribution to the count, of the map's maximum (root scale)", fontsize=11)
    if title:
        figure.suptitle(title, fontsize=13)
    save_figure(figure, file)


def draw_maps(panels: Sequence[Panel], file: Path, *, title: str = "") -> None:
    """Draw images and, below, their density maps in one colour scale.

    The panels stand side by side: before and after, for example. ValueError without matplotlib or
    panels.
    """
    _check("draw_maps", panels)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    height, width = panels[0].image.shape[:2]
    size = (_COLUMN * len(panels) + 0.9, 2 * (_COLUMN * height / width + 0.4) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False)
    # A root scale for all panels: a raised map must not hide the clean one beside it.
    top = max(float(np.quantile(panel.cells, 0.999)) for panel in panels)
    norm = PowerNorm(0.5, 0.0, max(top, 1e-6), clip=True)
    for (above, below), panel in zip(axes.T, panels, strict=True):
        tall, wide = panel.image.shape[:2]
        above.imshow(panel.image)
        rows, columns = panel.cells.shape
        stride = round(wide / columns)
        covered = (0, columns * stride, rows * stride, 0)
        below.imshow(
            panel.cells, extent=covered, norm=norm, cmap="inferno", interpolation="nearest"
        )
        _finish(above, panel)
        _finish(below, panel)
        below.set_title(f"{panel.cells.sum(dtype=np.float64):,.1f} people", fontsize=11)
        for axis in (above, below):
            axis.set_xlim(0, wide)
            axis.set_ylim(tall, 0)
    ticks = norm.inverse(np.linspace(0, 1, 6))
    bar = figure.colorbar(
        ScalarMappable(norm, "inferno"), ax=axes[1, :].tolist(), shrink=0.9, pad=0.01,
        ticks=ticks, format="%.2g",
    )  # fmt: skip
    bar.set_label("people per cell (root scale)", fontsize=11)
    if title:
        figure.suptitle(title, fontsize=13)
    save_figure(figure, file)


def _check(op: str, given: Sized) -> None:
    reason = missing_library()
    if reason is not None:
        raise ValueError(reason)
    if len(given) == 0:
        raise ValueError(f"{op}: expected something to draw, got none")


class _Look(NamedTuple):
    colour: str
    dashes: str


def _looks(names: Sequence[str]) -> dict[str, _Look]:
    """Return colour and dashes by name, distinct in grey too; grey is for the clean model only."""
    ordered = sorted(names, key=lambda name: name != _PLAIN)
    first = 0 if _PLAIN in names else 1
    return {
        name: _Look(_COLOURS[(first + number) % len(_COLOURS)], _STYLES[number % len(_STYLES)])
        for number, name in enumerate(ordered)
    }


def _finish(axis: Any, panel: Panel) -> None:
    """Set the title and remove ticks and frame; the label of the row stays."""
    axis.set_title(panel.title, fontsize=11)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
