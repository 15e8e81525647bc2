"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write sorted, indented JSON so that a reader sees the old file or the new one whole."""
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, even after a crash, sees the old one or the new one whole."""
    temporary = path.with_name(f".{path.name}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """os.write may stop short (a full disk, a signal); this goes on until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
