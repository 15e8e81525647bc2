"""Every script in examples/ runs unchanged and prints its result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "add_attack": "colours ",
    "attack_own_network": "people",
    "certify": "patch_size=40",
    "count_folder": "test-0-1: ",
    "density_map": "3.000 people",
    "kernels": "fullest windows",
    "measure_backdoor": "images=3",
    "train_robustly": "epoch=1",
}


def test_none_is_missing() -> None:
    assert sorted(SCRIPTS) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert SCRIPTS[name] in done.stdout
