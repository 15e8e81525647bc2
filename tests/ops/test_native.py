"""The compiled kernels are there, and they are the ones that run."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pycc
from pycc import _compiled, ops
from pycc.ops import _native
from pycc.ops.adaptive_sigma import MAX_NEIGHBOURS

pytestmark = pytest.mark.compiled

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import torch, pycc, pycc.ops, _pycc
assert _pycc.version == pycc.__version__
called = []
def watched(name, kernel):
    return lambda *arguments: (called.append(name), kernel(*arguments))
kernels = pycc.ops._native.kernels
for name, (kernel, parameters) in kernels.items():
    kernels[name] = watched(name, kernel), parameters
points = torch.tensor([[1.0, 2.0], [4.0, 5.0]])
pycc.ops.density_map(points, pycc.ops.adaptive_sigma(points), (8, 8))
pycc.ops.paste_patch(torch.zeros(1, 3, 8, 8), torch.ones(3, 2, 2), top_left=torch.tensor([[1, 1]]))
print(sorted(called))
"""
COMPILED = "['adaptive_sigma_cpu', 'density_map_cpu', 'paste_patch_cpu']"


@pytest.mark.long
@pytest.mark.parametrize("folder", ["root", "elsewhere"])
def test_the_compiled_kernels_run_from_any_folder(folder: str, tmp_path: Path) -> None:
    """Python started in the repository's root finds the sources; elsewhere, what was installed."""
    where = ROOT if folder == "root" else tmp_path
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == COMPILED


def test_info_describes_the_compiled_module() -> None:
    facts = ops.info()
    assert facts["compiled"] is True
    assert facts["running"] == "compiled"
    assert facts["version"] == pycc.__version__
    assert facts["threads"] == torch.get_num_threads()
    with ops.reference():
        assert ops.info()["running"] == "reference"
    assert ops.info()["running"] == "compiled"


BROKEN = """
import torch
from pycc import ops
try:
    ops.density_map(torch.ones(4, 2), 1.0, (5, 5))
except ImportError as error:
    print(error)
with ops.reference():
    print(tuple(ops.density_map(torch.ones(4, 2), 1.0, (5, 5)).shape))
"""


@pytest.mark.command
def test_with_a_broken_module_the_twins_run_only_when_asked(tmp_path: Path) -> None:
    """As with a module that was linked to a library of another machine."""
    (tmp_path / "_pycc.py").write_text("raise ImportError('libother.so: not found')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYCC_OPS": "", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BROKEN], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, shape = done.stdout.splitlines()
    assert "compiled module cannot be loaded (libother.so: not found); build it" in refused
    assert shape == "(5, 5)"


def test_an_old_module_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(pycc, "__version__", "99.0")
    module, why, built = _compiled.load()
    assert (module, built) == (None, True)
    assert "99.0" in why
    assert "pip install ." in why


def test_a_module_of_an_earlier_build_is_refused(monkeypatch) -> None:
    """Of the same version, but from before kernels were listed."""
    earlier = SimpleNamespace(version=pycc.__version__)
    monkeypatch.setitem(sys.modules, "_pycc", earlier)
    module, why, built = _compiled.load()
    assert (module, built) == (None, True)
    assert "older than the package" in why
    assert "pip install ." in why


def test_tensors_on_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="must be on cpu or cuda, got meta"):
        _native.run("density_map", torch.device("meta"))
    if ops.info()["cuda"] is None:
        with pytest.raises(ValueError, match="built without CUDA"):
            _native.run("density_map", torch.device("cuda"))
    assert _native.module().max_neighbours == MAX_NEIGHBOURS


def test_the_twins_are_asked_for_by_thread() -> None:
    with ops.reference(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(ops.info).result()["running"] == "compiled"


@pytest.mark.command
@pytest.mark.parametrize(("value", "expected"), [("reference", "reference"), ("", "compiled")])
def test_the_environment_asks_for_the_twins(value: str, expected: str) -> None:
    code = "import pycc.ops; print(pycc.ops.info()['running'])"
    environment = {**os.environ, "PYCC_OPS": value}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_a_misspelt_environment_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("PYCC_OPS", "refrence")
    expected = "PYCC_OPS must be compiled, reference or emulated, got 'refrence'"
    with pytest.raises(ValueError, match=expected):
        _native.reference_at_start(_compiled.load())
