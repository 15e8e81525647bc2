"""The emulator of CUDA kernels finds what is wrong in them: ``planted_faults.cu``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "csrc" / "core"
CXX = os.environ.get("CXX", "c++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(CXX) is None:
        pytest.skip(f"no C++ compiler ({CXX})")
    built: Path = tmp_path_factory.mktemp("faults") / "faults"
    command = [
        CXX, "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DPYCC_CUDA_HOST",
        f"-I{CORE}", "-x", "c++", str(HERE / "planted_faults.cu"), str(CORE / "cuda_host.cpp"),
        "-o", str(built),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -lasan" in done.stderr or "libasan" in done.stderr:
        pytest.skip(f"{CXX} has no AddressSanitizer")
    assert done.returncode == 0, done.stderr
    return built


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("none", "right"),
        ("no_barrier", "wrong"),
        ("overflow", "heap-buffer-overflow"),
        ("mask_without_itself", "a lane takes part in an exchange whose mask does not name it"),
        ("mask_of_gone", "lanes wait for others of a mask that do not reach the exchange"),
        ("divergent", "threads wait at a barrier that others of the block do not reach"),
    ],
)
def test_the_emulator_finds_planted_faults(program: Path, fault: str, finding: str) -> None:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [program, fault], capture_output=True, text=True, check=False, env=environment
    )
    assert finding in done.stdout + done.stderr
    assert (done.returncode == 0) == (fault != "overflow")
    assert done.stdout.endswith(", then right\n") == (fault != "overflow")
