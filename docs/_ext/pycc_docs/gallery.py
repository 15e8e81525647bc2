"""The pictures of the gallery: each script of ``examples/`` writes one, named like itself."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
FOLDER = "gallery"


def draw(app: Sphinx) -> None:
    """Run every example whose picture is missing or older than the script; stop if one fails.

    They run in one process of their own: importing torch takes longer than most of them, and one
    registers an attack that is not part of the documented package.
    """
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    old = [script for script in sorted(EXAMPLES.glob("*.py")) if _is_old(script, folder)]
    if not old:
        return
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *map(str, old)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{EXAMPLES}: {done.stderr.strip()}")


def _is_old(script: Path, folder: Path) -> bool:
    picture = folder / f"{script.stem}.png"
    return not picture.exists() or picture.stat().st_mtime < script.stat().st_mtime


def run(script: Path, folder: Path) -> None:
    """Run a script in an empty folder and keep the picture that it writes."""
    name = f"{script.stem}.png"
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        runpy.run_path(str(script), run_name="__main__")
        if not Path(name).exists():
            raise RuntimeError(f"{script}: wrote no {name}")
        (folder / name).write_bytes(Path(name).read_bytes())
        os.chdir(folder)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        run(Path(argument), Path(sys.argv[1]))
