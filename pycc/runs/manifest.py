"""The manifest of a run: its settings, the fingerprints of its inputs, and its environment."""

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
"""Version of the manifest's format; runs of other versions are refused."""


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of the run in the folder ``path``.

    Raises:
        ValueError: a manifest that is missing, is not a JSON object, or has another schema.

    Example:
        >>> import tempfile
        >>> from pycc import runs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs.Run.create(folder, {"kind": "example"}).close()
        ...     runs.read_manifest(folder)
        {'kind': 'example', 'schema': 1}
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
        got = "without a schema" if schema is None else f"of schema {schema}"
        raise ValueError(
            f"{file}: expected a run of schema {SCHEMA}, got one {got}, of another version of "
            "pycc: start a new run"
        )
    return manifest


def read_flags(path: str | os.PathLike[str], kind: str, *, flag: str = "") -> dict[str, Any]:
    """Read the flags of the command that started the run in the folder ``path``.

    Args:
        path: the run folder.
        kind: the expected kind of run.
        flag: the flag by which the user named the folder, if any, for the error.

    Raises:
        ValueError: a run of another kind, or one that was not started by a command.

    Example:
        >>> import tempfile
        >>> from pycc import runs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = {"kind": "attack", "settings": {"flags": {"seed": 7}}}
        ...     runs.Run.create(folder, manifest).close()
        ...     runs.read_flags(folder, "attack")
        {'seed': 7}
    """
    manifest = read_manifest(path)
    settings = manifest.get("settings")
    flags = settings.get("flags") if isinstance(settings, dict) else None
    if manifest.get("kind") != kind or not isinstance(flags, dict):
        raise ValueError(f"{flag} {path}: {another_command(manifest)}".strip())
    return flags


def another_command(manifest: Mapping[str, Any]) -> str:
    """The end of an error about a run that the present command did not make.

    >>> another_command({"kind": "train", "settings": {"flags": {"command": "backdoor train"}}})
    "expected a run of this command, got one of 'backdoor train'"
    >>> another_command({"kind": "train", "settings": {}})
    "expected a run of this command, got one from Python, of kind 'train'"
    """
    settings = manifest.get("settings")
    flags = settings.get("flags") if isinstance(settings, Mapping) else None
    kind = manifest.get("kind")
    if not isinstance(flags, Mapping):
        return f"expected a run of this command, got one from Python, of kind {kind!r}"
    return f"expected a run of this command, got one of {flags.get('command', kind)!r}"


def fingerprint(items: Iterable[tuple[str, Tensor | str]]) -> str:
    """Compute the SHA-256 hash of named tensors (type, shape, bytes) and strings, in this order.

    Returns:
        64 hexadecimal digits. Tensors on every device give the same hash.

    Example:
        >>> import torch
        >>> from pycc.runs import fingerprint
        >>> fingerprint([("weight", torch.zeros(2))]) == fingerprint([("weight", torch.ones(2))])
        False
    """
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
    """Describe what results may depend on besides settings: versions, commit, threads, platform.

    Example:
        >>> from pycc.runs import environment
        >>> sorted(environment())[:4]
        ['commit', 'numpy', 'ops', 'pillow']
    """
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
    """Return the git commit of this code, with a mark if files differ; None outside a checkout."""
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
        # Installed inside another repository, that repository's commit does not describe pycc.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def differences(before: Any, now: Any) -> list[str]:
    """List the entries in which two JSON values differ, each as "NAME was X, is Y", sorted.

    A missing entry counts as None; names of nested entries are joined by points. Two fingerprints
    are not printed; instead, the message names what changed.

    Example:
        >>> from pycc.runs import differences
        >>> differences({"seed": 0, "size": [81]}, {"seed": 1, "size": [81]})
        ['seed was 0, is 1']
    """
    old, new = dict(_leaves("", before)), dict(_leaves("", now))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    # Data with another number of images differ in all other fingerprints, too.
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
"""The data that each entry of ``pycc.data.dataset.data_fingerprint`` is computed from."""


def _difference(name: str, before: Any, now: Any) -> str:
    if all(isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) for x in (before, now)):
        of = _FINGERPRINTED.get(name.rpartition(".")[2])
        return f"{name} changed" if of is None else f"{of} changed ({name})"
    return f"{name} was {before!r}, is {now!r}"


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the values inside nested objects and lists, each with its path."""
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
    """Check that the given flags agree with the stored flags of a run that is resumed.

    Args:
        stored: the flags of the run.
        given: the flags of the present command line, without defaults.
        folder: the run folder, for the error.

    Raises:
        ValueError: names the first flag that differs.

    Example:
        >>> from pycc.runs import check_flags
        >>> check_flags({"seed": 0, "size": 81}, {"seed": 0}, "run1")
        >>> check_flags({"seed": 0, "size": 81}, {"seed": 1}, "run1")
        Traceback (most recent call last):
        ...
        ValueError: --resume run1: a resumed run keeps its settings; --seed was 0, got 1
    """
    for name, value in given.items():
        now = json.loads(json.dumps(value))
        if stored.get(name) != now:
            raise ValueError(
                f"--resume {folder}: a resumed run keeps its settings; "
                f"--{name.replace('_', '-')} was {stored.get(name)!r}, got {now!r}"
            )
