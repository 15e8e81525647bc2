"""Every script in examples/ runs unchanged and prints its result."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from pycc.registry import Registry

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
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
    assert sorted(SCRIPTS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


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
