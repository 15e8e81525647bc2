"""Every script in examples/ runs unchanged, prints its result and writes its picture."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from pycc.registry import Registry

pytestmark = pytest.mark.command

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
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
    assert sorted(SCRIPTS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert len(SCRIPTS) == 10


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_fits_on_a_screen(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 40


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # One script registers an attack, which other tests must not see.
    monkeypatch.setattr("pycc.attack.attacks", Registry("attack"))
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert SCRIPTS[name] in printed.out
    with Image.open(tmp_path / f"{name}.png") as picture:
        shades = picture.convert("L").getextrema()
    assert min(picture.size) >= 100
    assert shades[1] - shades[0] > 100  # something is drawn
