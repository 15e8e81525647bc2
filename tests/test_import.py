"""What an import and the quick commands load: torch only when it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pycc
from pycc import _compiled

ROOT = Path(__file__).resolve().parents[1]
LOADED = "; import sys; print(*sorted({'torch', 'numpy', 'scipy', 'PIL'} & {*sys.modules}))"
MAIN = "from pycc.commands import main; code = main(argv={}); assert code == {}, code"


def run(code: str, **environment: str) -> str:
    """The output of Python code in a fresh process, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import pycc",
        "import pycc.adapters",
        MAIN.format(["--help"], 0),
        MAIN.format(["--version"], 0),
        MAIN.format(["atack"], 2),
        MAIN.format([], 2),
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert run(code + LOADED).splitlines()[-1] == ""


@pytest.mark.command
def test_what_is_used_is_loaded() -> None:
    assert "torch" in run("from pycc import count" + LOADED)


def test_lazy_names_are_those_of_the_package() -> None:
    from pycc import Count, count, counters

    assert (Count, count) == (counters.Count, counters.count)
    assert {"Count", "count", "__version__"} <= {*dir(pycc)}
    with pytest.raises(AttributeError, match="module 'pycc' has no attribute 'cuont'"):
        _ = pycc.cuont  # type: ignore[attr-defined]


def test_the_version_says_what_is_compiled() -> None:
    from pycc import ops

    first, second = run(MAIN.format(["--version"], 0)).splitlines()
    facts = ops.info()
    assert first == f"pycc {pycc.__version__}"
    if facts["compiled"]:
        cuda = "without CUDA" if facts["cuda"] is None else f"with CUDA {facts['cuda']}"
        assert second == f"kernels compiled by {facts['compiler']}, {facts['simd']}, {cuda}"
    else:
        assert second == facts["missing"]
        assert "without its compiled kernels" in second


@pytest.mark.command
def test_without_kernels_a_warning_says_so_and_the_twins_run() -> None:
    """As after a build without a compiler: the module cannot be found."""
    hidden = (
        "import sys, warnings; sys.modules['_pycc'] = None\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    from pycc import ops\n"
        "facts = ops.info()\n"
        "print(facts['running'], facts['compiled'], len(seen), seen[0].message)"
    )
    assert run(hidden, PYCC_OPS="").startswith(
        "reference False 1 pycc was installed without its compiled kernels: "
    )


def test_the_environment_chooses_without_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycc.ops._native import reference_at_start

    nothing = _compiled.Loaded(None, _compiled.WITHOUT, built=False)
    for choice, twins in (("reference", True), ("compiled", False)):
        monkeypatch.setenv("PYCC_OPS", choice)
        assert reference_at_start(nothing) is twins
