"""Make the parts of the README that are made: its tables, and with --picture its picture.

The tables come from docs/results. The picture is that of ``pycc attack`` for one built-in scene, as
a small JPEG.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from pycc_docs.tables import filled  # noqa: E402

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "readme.jpg"
COMMAND = ["attack", "--preset", "quick", "--max-images", "1", "--patch-size", "0.08"]
SIZE = (940, 800)


def draw(run: Path) -> None:
    """Reduce the picture of the first image of an attack run to the README's."""
    (source,) = sorted((run / "pictures").glob("*.png"))
    with Image.open(source) as picture:
        small = picture.convert("RGB")
        small.thumbnail(SIZE, Image.Resampling.LANCZOS)
        small.save(PICTURE, quality=80, optimize=True)


def main() -> None:
    """Fill in the tables, and draw the picture if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", action="store_true", help="attack the scene and draw it too")
    parser.add_argument("--run", type=Path, help="take the picture from this run instead")
    arguments = parser.parse_args()
    README.write_text(filled(README.read_text("utf-8")), "utf-8")
    if arguments.run is not None:
        draw(arguments.run)
    elif arguments.picture:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "pycc", *COMMAND, "--out", str(run)]
            subprocess.run(command, check=True)
            draw(run)


if __name__ == "__main__":
    main()
