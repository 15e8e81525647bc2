"""The pictures of the gallery: each script of ``examples/`` writes one, named like itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pycc_docs.tables import ROOT

if TYPE_CHECKING:
    from sphinx.application import Sphinx

EXAMPLES = ROOT / "examples"
FOLDER = "gallery"


def draw(app: Sphinx) -> None:
    """Run every example whose picture is missing or older than the script; stop if one fails."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    for script in sorted(EXAMPLES.glob("*.py")):
        picture = folder / f"{script.stem}.png"
        if not picture.exists() or picture.stat().st_mtime < script.stat().st_mtime:
            run(script, picture)


def run(script: Path, picture: Path) -> None:
    """Run a script in an empty folder and keep the picture that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        made = Path(folder) / picture.name
        if done.returncode or not made.exists():
            raise RuntimeError(f"{script}: wrote no {picture.name}: {done.stderr.strip()}")
        picture.write_bytes(made.read_bytes())
