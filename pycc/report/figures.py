"""Writing figures to disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pycc.runs import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, atomically; identical figures give identical bytes.

    The file's folder is created if it does not exist. OSError if the file cannot be written.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, stream.getvalue())
