"""The templates of CONTRIBUTING.md work, and the files about the package agree with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pycc
from pycc import models, ops
from pycc.attack import attacks
from pycc.models.base import MODELS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def template(heading: str, language: str, number: int = 0) -> str:
    """A code block of a section."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a template registers is there for one test."""
    with MODELS.restored(), attacks.restored():
        yield


def made(heading: str) -> dict[str, Any]:
    """What a Python template defines."""
    names: dict[str, Any] = {"__name__": "template"}
    exec(compile(template(heading, "python"), heading, "exec"), names)
    return names


def test_the_model_is_created_and_has_the_geometry_that_it_states() -> None:
    made("A model")
    torch.manual_seed(0)
    counter = models.create("drawn", channels=4).eval()
    assert "drawn" in models.names()
    assert counter.options() == {"channels": 4}
    assert counter(torch.rand(2, 3, 24, 32)).shape == (2, 1, 6, 8)
    assert models.measure_receptive_field(counter).side == counter.receptive_field == 16


def test_the_attack_finds_better_patches_step_by_step() -> None:
    made("An attack")
    counter = models.load("mcnn-synthetic")
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    attack = attacks["searched"](patch_size=16, objective="over", steps=20)
    result = attack(counter, image)
    losses = result.loss_history[0]
    assert len(losses) == 21
    assert (losses.diff() <= 0).all()
    assert losses[-1] < losses[0]


def test_the_twin_of_the_kernel_checks_its_argument() -> None:
    halved = made("A kernel")["halved"]
    with ops.reference():
        assert halved(torch.tensor([[3.0], [-1.0]])).tolist() == [[1.5], [-0.5]]
        with pytest.raises(ValueError, match="halved: values must be float32, got int64"):
            halved(torch.tensor([1]))
        with pytest.raises(TypeError, match="halved: values must be a tensor"):
            halved(1.0)


@pytest.mark.compiled
def test_the_kernel_compiles_without_warnings_and_computes(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "ops").mkdir()
    (tmp_path / "core").symlink_to(ROOT / "csrc" / "core")
    (tmp_path / "ops" / "halved.h").write_text(template("A kernel", "cpp", 0))
    main = (
        "#include <cstdio>\nint main() { const float values[3] = {1, 2, -3}; float out[3];\n"
        'pycc::halved::cpu(out, values, 3, 2); std::printf("%g %g %g", out[0], out[1], out[2]); }\n'
    )
    source = tmp_path / "ops" / "halved.cpp"
    source.write_text(template("A kernel", "cpp", 1) + main)
    flags = ["-std=c++17", "-pthread", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    program = tmp_path / "halved"
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "0.5 1 -1.5"


def test_versions_agree() -> None:
    constraints = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = dict(re.findall(r"\[([\w-]+)==([\w.]+)\]", hooks))
    assert set(pinned) == {"ruff", "clang-format"}
    assert all(constraints[name] == version for name, version in pinned.items())
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == pycc.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert all(name in constraints for name in map(_name, extras["test"]))
    for extra in ("art", "torchmetrics", "supervision", "completion"):
        assert all(name in constraints for name in map(_name, extras[extra]))


def _name(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]
