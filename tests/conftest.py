"""What all tests share: where the real data and the published numbers lie."""

from __future__ import annotations

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: threads of torch would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from numpy.lib.npyio import NpzFile

from pycc._compiled import load
from pycc.commands.progress import TerminalProgress

COMPILED = load()
if not COMPILED.built:  # request the twins, so that no process warns
    os.environ.setdefault("PYCC_OPS", "reference")

import pycc.ops  # noqa: E402  (reads the environment)

# Torch loads so many objects that walks over all of them are a tenth of the time.
gc.set_threshold(50_000, 20, 20)

# A loaded machine is no failure, and a failure should come again.
settings.register_profile(
    "pycc",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pycc")

_TESTS = Path(__file__).resolve().parent
_SHARED = Path(os.environ.get("PYCC_SHARED", _TESTS.parents[1] / "shared"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that take minutes or gigabytes, unless -m names their marker.

    Those of the compiled kernels are skipped if pycc was installed without them.
    """
    if not COMPILED.built:
        without = pytest.mark.skip(reason="pycc was installed without its compiled kernels")
        for item in items:
            if item.get_closest_marker("compiled"):
                item.add_marker(without)
    left_out = [name for name in ("long", "large") if name not in config.option.markexpr]
    skipped = [item for item in items if any(map(item.get_closest_marker, left_out))]
    if skipped:
        config.hook.pytest_deselected(items=skipped)
        items[:] = [item for item in items if item not in {*skipped}]


def pytest_collection_finish() -> None:
    """Collect no garbage among all that is loaded by now: it stays."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real pictures and public weights beside the repository."""
    if not (_SHARED / "data").is_dir():
        pytest.skip("no ../shared beside the repository: real pictures and weights are not there")
    return _SHARED


@pytest.fixture(scope="session")
def fixture() -> Callable[[str], NpzFile]:
    """Opens ``tests/fixtures/NAME.npz``: numbers that the published implementations produced."""
    return lambda name: np.load(_TESTS / "fixtures" / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session", autouse=True)
def no_progress_by_the_clock() -> Iterator[None]:
    """Time stands still for the progress of commands: what they print is then theirs alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TerminalProgress, "clock", staticmethod(lambda: 0.0))
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that pycc was built for and that is there."""
    if request.param == "cuda":
        if pycc.ops.info()["cuda"] is None:
            pytest.skip("pycc was built without CUDA")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    return torch.device(request.param)


def _free_memory() -> int:
    """Bytes that this process may still take, 0 where the system does not tell."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return 0
    group = Path("/sys/fs/cgroup")  # a container's own limit, in either version of the interface
    for most, now in (
        (group / "memory.max", group / "memory.current"),
        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
    ):
        if most.exists() and now.exists() and most.read_text().strip() != "max":
            free = min(free, int(most.read_text()) - int(now.read_text()))
    return free


@pytest.fixture
def needs_memory() -> Callable[[torch.device, float], None]:
    """Skips where a device has less than so many GB free."""

    def check(device: torch.device, gigabytes: float) -> None:
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] / 1e9
        else:
            free = _free_memory() / 1e9
        if free < gigabytes:
            pytest.skip(f"needs {gigabytes:.0f} GB of free memory on {device}, has {free:.0f}")

    return check


@pytest.fixture
def with_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
