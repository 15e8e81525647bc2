"""Convert torch files that Python 2 wrote to the form that Python 3 would have written.

A string of Python 2 is a string of bytes: a key, or the eight bytes of a number by numpy. torch's
restricted unpickler accepts only short ones, and decodes them as UTF-8. Here every string is
converted to one of Python 3, byte by byte (Latin-1), in which numpy finds the bytes of its numbers.
Nothing else changes: torch's unpickler still decides what a file may require.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO, cast

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""The first bytes of a torch file that is not a zip."""
_PICKLES = 5
"""Pickles in such a file: magic number, version, sizes of types, content, names of storages."""


def translated(path: Path) -> io.BytesIO | None:
    """Return a torch file with the strings of Python 2 converted, or None if it has none.

    For a damaged file, whatever ``zipfile`` and ``pickletools`` raise.
    """
    if zipfile.is_zipfile(path):
        return _translated_zip(path)
    # Mapped to memory, since with a file a damaged length would allocate that much memory.
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file,
    ):
        if file.read(len(MAGIC)) != MAGIC:
            return None
        file.seek(0)
        before, after = bytearray(), bytearray()
        for _ in range(_PICKLES):
            pickled = _pickle(file)
            before += pickled
            after += _translate(pickled)
        return None if before == after else io.BytesIO(bytes(after) + file.read())


def _translated_zip(path: Path) -> io.BytesIO | None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if _is_pickle(name)}
        after = {name: _translate(pickled) for name, pickled in content.items()}
        if content == after:
            return None
        translation = io.BytesIO()
        with zipfile.ZipFile(translation, "w") as target:
            for name in archive.namelist():
                target.writestr(name, after[name] if name in after else archive.read(name))
    translation.seek(0)
    return translation


def _is_pickle(name: str) -> bool:
    return name.rpartition("/")[2] == "data.pkl"


def _pickle(file: mmap.mmap) -> bytes:
    """Return the bytes of the pickle that begins at the current position."""
    start = file.tell()
    for _ in pickletools.genops(cast("IO[bytes]", file)):
        pass
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _translate(pickled: bytes) -> bytes:
    operations = list(pickletools.genops(pickled))
    ends = [*(position for _, _, position in operations[1:]), len(pickled)]
    parts = []
    for (operation, value, start), end in zip(operations, ends, strict=True):
        assert start is not None
        assert end is not None
        part = pickled[start:end]
        if operation.name in ("SHORT_BINSTRING", "BINSTRING"):
            text = str(value).encode()
            part = pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        elif operation.name == "INT" and isinstance(value, bool):
            part = pickle.NEWTRUE if value else pickle.NEWFALSE
        elif operation.name == "INT" and isinstance(value, int):  # of more than 32 bits
            part = pickle.LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True)
        parts.append(part)
    return b"".join(parts)
