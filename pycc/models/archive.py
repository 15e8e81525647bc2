"""Read the tensors of a TorchScript archive without running its code.

``torch.jit.load`` runs code of the archive while it loads. The archive is a zip file whose
``data.pkl`` describes modules and parameters. This module reads that description with an unpickler
that accepts only tensors, lists and empty placeholders for modules. OpenAI's CLIP weights are such
an archive.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def is_script(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
    return any(name.endswith("/constants.pkl") for name in names)


def read_script(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by their dotted names.

    ``pickle.UnpicklingError`` if the description requires anything but tensors and modules; for a
    damaged file, whatever ``zipfile`` and torch raise.
    """
    with zipfile.ZipFile(path) as archive:
        (root,) = {n[: -len("data.pkl")] for n in archive.namelist() if n.endswith("/data.pkl")}
        with archive.open(f"{root}data.pkl") as file:
            module = _Reader(file, archive, root).load()
    state: dict[str, Tensor] = {}
    _collect(module, "", state)
    return state


class _Module:
    """A placeholder for a module: its attributes, without its code."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        raise pickle.UnpicklingError(f"Unsupported GLOBAL {module}.{name}")

    def persistent_load(self, key: Any) -> Tensor:
        kind, dtype, name, _, _ = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a persistent object that is not a storage")
        content = bytearray(self._archive.read(f"{self._root}data/{name}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _untagged(value: Any, _: Any) -> Any:
    return value


def _collect(value: Any, prefix: str, state: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        state[prefix] = value
    elif isinstance(value, _Module):
        for name, inner in getattr(value, "attributes", {}).items():
            _collect(inner, f"{prefix}.{name}" if prefix else str(name), state)
