"""The manifest of a run: what was asked for, of which data and weights, and on which machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pycc import ops

MANIFEST = "manifest.json"
SCHEMA = 1
"""Of the manifest; a run of another one is refused."""


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of the run in the folder ``path``.

    ValueError if there is none, it is none, or it is of another schema.
    """
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: expected a run folder, got none ({MANIFEST}: {error.strerror})"
        ) from None
    except ValueError:
        raise ValueError(f"{file}: expected JSON, got something else") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(manifest).__name__}")
    schema = manifest.get("schema")
    if schema != SCHEMA:
        found = "without a schema" if schema is None else f"of schema {schema}"
        raise ValueError(
            f"{file}: expected a run of schema {SCHEMA}, got one {found}, of another version of "
            "pycc: begin it anew"
        )
    return manifest


def read_flags(
    path: str | os.PathLike[str], kind: str, *, flag: str = "--resume"
) -> dict[str, Any]:
    """The flags of the command that began the run in the folder ``path``.

    ValueError, naming the ``flag`` that asked for it, for a run of another kind, or of no command.
    """
    manifest = read_manifest(path)
    settings = manifest.get("settings")
    flags = settings.get("flags") if isinstance(settings, dict) else None
    if manifest.get("kind") != kind or not isinstance(flags, dict):
        raise ValueError(f"{flag} {path}: expected a run of this command, got another")
    return flags


def fingerprint(items: Iterable[tuple[str, Tensor | str]]) -> str:
    """SHA-256 over named tensors (type, shape, bytes) and strings, in the order given."""
    digest = hashlib.sha256()
    for name, value in items:
        if isinstance(value, Tensor):
            array = np.ascontiguousarray(value.detach().cpu().numpy())
            digest.update(f"{name}\0{array.dtype.str}{list(array.shape)}\0".encode())
            digest.update(array.data if array.size else b"")
        else:
            digest.update(f"{name}\0{value}\0".encode())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """What a number may depend on besides the settings: versions, commit, threads, platform."""
    versions = {}
    for name in ("pycc", "torch", "numpy", "scipy", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "ops": ops.info(),
        **versions,
    }


def _commit() -> str | None:
    """The git commit of this code, marked when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        # Installed inside somebody else's repository, that repository's commit says nothing.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def differences(before: Any, now: Any) -> list[str]:
    """The entries of two JSON values that differ, each as "NAME was X, is Y", in sorted order.

    An entry that is missing counts as None; names of nested entries are joined by points. Of two
    fingerprints no reader learns anything: what they are of is named instead.
    """
    old, new = dict(_leaves("", before)), dict(_leaves("", now))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    # Data of another number of images differ in all else too.
    counted = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] == "images"}
    return [
        _difference(name, old.get(name), new.get(name))
        for name in names
        if name.rpartition(".")[2] not in _FINGERPRINTED or name.rpartition(".")[0] not in counted
    ]


_FINGERPRINTED = {
    "names": "the names of the images",
    "pixels": "the pixels of the images",
    "points": "the head annotations",
    "regions": "the regions of interest",
}
"""What the entries of ``pycc.data.dataset.data_fingerprint`` are of."""


def _difference(name: str, before: Any, now: Any) -> str:
    if all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in (before, now)):
        of = _FINGERPRINTED.get(name.rpartition(".")[2])
        return f"{name} changed" if of is None else f"{of} changed ({name})"
    return f"{name} was {before!r}, is {now!r}"


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values inside nested objects and lists, each with its path."""
    if isinstance(value, Mapping) and value:
        entries: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)) and value:
        entries = enumerate(value)
    else:
        yield name, value
        return
    for key, inner in entries:
        yield from _leaves(f"{name}.{key}" if name else str(key), inner)


def check_flags(stored: Mapping[str, Any], given: Mapping[str, Any], folder: str) -> None:
    """Refuse flags that contradict those of the run that is resumed; ValueError names the first."""
    for name, value in given.items():
        now = json.loads(json.dumps(value))
        if stored.get(name) != now:
            raise ValueError(
                f"--resume {folder}: a resumed run keeps its settings; "
                f"--{name.replace('_', '-')} was {stored.get(name)!r}, got {now!r}"
            )
