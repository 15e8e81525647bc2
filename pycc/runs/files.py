"""Atomic file writes: a reader never sees a partly written file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as sorted, indented JSON, atomically (see :func:`write_atomic`).

    Raises:
        ValueError, TypeError: a value that JSON cannot represent, NaN included.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pycc import runs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "summary.json"
        ...     runs.write_json(file, {"mae": 12.5})
        ...     print(file.read_text(), end="")
        {
          "mae": 12.5
        }
    """
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, even after a crash, sees the old or the new content.

    The data are written to a temporary file in the same folder, flushed to the disk, and renamed.

    Raises:
        OSError: the file cannot be written; an old file is then unchanged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pycc import runs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs.write_atomic(Path(folder) / "a.bin", b"12")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.bin']
    """
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
    """Write all of ``data``; a single ``os.write`` may write less (a full disk, a signal)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
