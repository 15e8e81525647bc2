"""Every script in examples/ runs unchanged, prints its result and writes its picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "add_attack": "colours ",
    "attack_own_network": "people",
    "certify": "patch_size=40",
    "count_folder": "test-0-1: ",
    "density_map": "45.000 people",
    "error_by_size": "apam [",
    "kernels": "fullest windows",
    "measure_backdoor": "images=3",
    "print_patch": "page.pdf",
    "train_robustly": "epoch=1",
}


def test_none_is_missing() -> None:
    assert sorted(SCRIPTS) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    assert len(SCRIPTS) == 10


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_fits_on_a_screen(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text("utf-8").splitlines()) <= 40


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert SCRIPTS[name] in done.stdout
    with Image.open(tmp_path / f"{name}.png") as picture:
        shades = picture.convert("L").getextrema()
    assert min(picture.size) >= 100
    assert shades[1] - shades[0] > 100  # something is drawn
