"""A picture of each image of an attack run: clean, attacked, and what the counter saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pycc.report.figures import save_figure
from pycc.runs import Record, read_records
from pycc.types import Progress

_MOST_COLUMNS = 5
"""The clean image and the four published sizes."""


def missing_library() -> str | None:
    """Return how to install the libraries of pictures; None if they are installed.

    >>> from unittest import mock
    >>> with mock.patch("pycc.report.pictures.find_spec", return_value=None):
    ...     missing_library()
    "pictures need matplotlib: pip install 'pycc[plot]'"
    """
    if find_spec("matplotlib") is None:
        return "pictures need matplotlib: pip install 'pycc[plot]'"
    return None


def draw(folder: str | Path, *, progress: Progress | None = None, redo: bool = False) -> list[Path]:
    """Draw a picture for each image of the run in ``folder`` into its ``pictures`` folder.

    Above the clean image and the attacked ones, below their density maps in one colour scale, the
    counts in the titles; of more than four sizes the largest patches. Pictures that exist are kept
    unless ``redo``. Needs the saved images and maps; an image without them is left out.
    ``progress`` is called after each. ValueError without matplotlib.

    >>> from tempfile import TemporaryDirectory
    >>> from pycc import attack, data, models
    >>> samples = data.open("synthetic", split="test", shape=(64, 96), heads=5, limit=1)
    >>> counter, apam = models.load("mcnn-synthetic"), attack.APAM(patch_size=16, steps=1)
    >>> with TemporaryDirectory() as folder:
    ...     run = attack.run(
    ...         counter, samples, apam, pgd=None, compare=False, checks=False, out=folder,
    ...         save_maps=True,
    ...     )
    ...     [path.name for path in draw(folder)]
    ['0000-test-0-0.png']
    """
    reason = missing_library()
    if reason is not None:
        raise ValueError(reason)
    folder = Path(folder)
    by_image: dict[int, list[Record]] = {}
    for record in read_records(folder):
        if "file" in record:
            by_image.setdefault(record["index"], []).append(record)
    made: list[Path] = []
    for done, records in enumerate(by_image.values(), start=1):
        panels = [panel for record in records if (panel := _panel(folder, record)) is not None]
        if panels:
            largest = sorted(panels[1:], key=lambda panel: panel.area)[1 - _MOST_COLUMNS :]
            panels = [panels[0], *largest]
            name = records[0]["file"].removesuffix(f".{records[0]['condition']}")
            path = folder / "pictures" / f"{name}.png"
            if redo or not path.exists():
                _draw(panels, path)
            made.append(path)
        if progress is not None:
            progress(done, len(by_image), "drawing")
    return made


@dataclass(frozen=True, eq=False)
class _Panel:
    """The image, density map and counts of one column."""

    record: Record
    pixels: NDArray[np.uint8]
    """[H,W,3]."""
    density: NDArray[np.float32]
    """[h,w], people per cell."""

    @property
    def is_clean(self) -> bool:
        return bool(self.record["condition"] == "clean")

    @property
    def count(self) -> float:
        return float(self.record["count"])

    @property
    def area(self) -> float:
        """The patch's share of the image's pixels."""
        return float(self.record["area"])


def _panel(folder: Path, record: Record) -> _Panel | None:
    """The column of one result; None where the run did not keep its image and map."""
    image = folder / "images" / f"{record['file']}.png"
    cells = folder / "maps" / f"{record['file']}.npz"
    if not (image.exists() and cells.exists()):
        return None
    with Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    with np.load(cells) as stored:
        return _Panel(record, pixels, stored["density"])


def _draw(panels: Sequence[_Panel], path: Path) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    height, width = panels[0].pixels.shape[:2]
    column = 4.0
    row = column * height / width
    figure = Figure(
        figsize=(column * len(panels) + 0.9, 2 * row + 1.1), dpi=110, layout="constrained"
    )
    axes = figure.subplots(2, len(panels), squeeze=False)
    # One scale for all maps, and its root: an attacked map may peak a hundred times higher, and
    # the clean one must stay visible beside it.
    top = max(float(np.quantile(panel.density, 0.999)) for panel in panels)
    norm = PowerNorm(0.5, 0.0, max(top, 1e-6), clip=True)
    for (above, below), panel in zip(axes.T, panels, strict=True):
        above.imshow(panel.pixels, extent=(0, width, height, 0))
        above.set_title(_title(panel, panels[0]), fontsize=11)
        cells_high, cells_wide = panel.density.shape
        stride = round(width / cells_wide)
        covered = (0, cells_wide * stride, cells_high * stride, 0)
        below.imshow(
            panel.density, extent=covered, norm=norm, cmap="inferno", interpolation="nearest"
        )
        below.set_title(f"density map: {panel.count:,.1f} people", fontsize=11)
        if "top_left" in panel.record:
            (y, x), side = panel.record["top_left"], panel.record["side"]
            edge = np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)])
            below.plot(*edge.T, color="#35d0ff", linewidth=1.0)
        for axis in (above, below):
            axis.set_xlim(0, width)
            axis.set_ylim(height, 0)
            axis.set_axis_off()
    ticks = norm.inverse(np.linspace(0, 1, 6))
    bar = figure.colorbar(
        ScalarMappable(norm, "inferno"), ax=axes[1, :].tolist(), shrink=0.9, pad=0.01, ticks=ticks,
        format="%.2g",
    )  # fmt: skip
    bar.set_label("people per cell (root scale)")
    truth, name = panels[0].record["truth"], panels[0].record["image"]
    heads = "not annotated" if truth is None else f"{truth:,} people annotated"
    figure.suptitle(f"{name}: {heads}", fontsize=13, x=0.5)
    save_figure(figure, path)


def _title(panel: _Panel, clean: _Panel) -> str:
    if panel.is_clean:
        return f"clean: counted {panel.count:,.1f}"
    share = ""
    if clean.is_clean and clean.count > 0:
        share = f" ({100 * (panel.count / clean.count - 1):+,.0f} %)"
    name, side = str(panel.record["condition"]).upper(), panel.record["side"]
    return f"{name}, {side} pixels: counted {panel.count:,.1f}{share}"
