"""Torch files as Python 2 wrote them: protocol 2, and strings of bytes."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar

import torch


class Pickler(pickle._Pickler):
    """Every string as SHORT_BINSTRING or BINSTRING, long integers as INT, as cPickle did."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, text: str | bytes) -> None:
        raw = text.encode("latin-1") if isinstance(text, str) else text
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(raw)) + raw)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    def save_int(self, number: int) -> None:
        if -(2**31) <= number < 2**31 or abs(number) >= 2**63:
            self.save_long(number)
        else:
            self.write(pickle.INT + str(number).encode() + b"\n")

    def reducer_override(self, value: object) -> object:
        if isinstance(value, OrderedDict):  # a list of lists in Python 2.7
            return OrderedDict, ([[key, inner] for key, inner in value.items()],)
        return NotImplemented

    dispatch[str] = dispatch[bytes] = save_str
    dispatch[int] = save_int


def dump(content: object, file: io.BytesIO, protocol: int = 2) -> None:
    Pickler(file, protocol).dump(content)


class _Module:
    __name__ = "cPickle"
    Pickler, dump = Pickler, staticmethod(dump)
    HIGHEST_PROTOCOL = 2


def save(content: object, path: Path, *, zipped: bool = False) -> Path:
    """``torch.save`` of Python 2: in the format of its days, or in that of torch 1.4 (a zip)."""
    buffer = io.BytesIO()
    torch.save(
        content,
        buffer,
        pickle_module=_Module(),
        pickle_protocol=2,
        _use_new_zipfile_serialization=zipped,
    )
    written = buffer.getvalue()
    # Where numpy 1 kept its functions; a zip has checksums.
    path.write_bytes(written if zipped else written.replace(b"cnumpy._core.", b"cnumpy.core."))
    return path
