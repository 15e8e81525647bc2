"""Torch files that Python 2 wrote, as Python 3 would have written them.

A string of Python 2 is one of bytes: a key, or the eight bytes of a number by numpy. torch's
restricted unpickler knows the short ones only, and takes them for UTF-8. Here every string becomes
one of Python 3, byte by byte (Latin-1), in which numpy looks for the bytes of its numbers. Nothing
else changes: what a file may ask for is still decided by torch's unpickler.
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
"""How a torch file begins that is no zip."""
_PICKLES = 5
"""Of such a file: magic number, version, sizes of types, content, names of storages."""


def translated(path: Path) -> io.BytesIO | None:
    """A torch file with the strings of Python 2 translated, or None if it has none.

    Whatever ``zipfile`` and ``pickletools`` raise for a damaged file.
    """
    if zipfile.is_zipfile(path):
        return _translated_zip(path)
    # Read as memory, because of a file itself a damaged length asks for as much memory at once.
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
    """The bytes of the pickle that begins here."""
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
