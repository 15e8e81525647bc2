"""The run folder: what was asked, what was measured, and nothing lost when a run is killed.

``manifest.json`` says what was asked for and of what; ``results.jsonl`` holds one line per result,
on the disk as soon as it is known; everything else is derived from these two. A run may also live
in memory alone (``path`` None).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Record = dict[str, Any]

MANIFEST, RESULTS, SUMMARY = "manifest.json", "results.jsonl", "summary.json"
KEY = ("index", "condition", "size")


class Run:
    """A run: its manifest, its results so far and, on the disk, its folder.

    ``key`` names the fields that identify a result: a run never holds two results of one key.
    """

    def __init__(
        self, path: Path | None, manifest: Mapping[str, Any], key: Sequence[str] = KEY
    ) -> None:
        self.path = path
        self.key = tuple(key)
        # As a reader of the file would get it: tuples become lists, paths are refused.
        self.manifest: dict[str, Any] = json.loads(json.dumps(manifest, allow_nan=False))
        self.records: list[Record] = []
        self.summary: dict[str, Any] = {}
        self.files: Path | None = path
        """Where other files of this run go."""
        self._keys: set[tuple[Any, ...]] = set()
        self._lock: int | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        manifest: Mapping[str, Any],
        *,
        key: Sequence[str] = KEY,
    ) -> Run:
        """Start a run in the folder ``path`` (made if need be; it must be empty), or in memory.

        ValueError if the folder holds anything, OSError if it cannot be written.
        """
        if path is None:
            return cls(None, manifest, key)
        check_new(path)
        folder = Path(path)
        run = cls(
            folder, manifest, key
        )  # refuses a manifest that is no JSON before anything is made
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, run.manifest)
        run._open()
        return run

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        *,
        key: Sequence[str] = KEY,
        fingerprints: Mapping[str, Any] | None = None,
    ) -> Run:
        """Continue the run in the folder ``path``; a half-written last result is cut off.

        ValueError if it is no run folder, is damaged, is being written by another process, or if
        its manifest has other ``fingerprints`` than these (None: they are not compared).
        """
        folder = Path(path)
        run = cls(folder, read_manifest(folder), key)
        if fingerprints is not None:
            changed = differences(run.manifest.get("fingerprints"), fingerprints)
            if changed:
                raise ValueError(
                    f"{folder}: a resumed run keeps its data and weights; {'; '.join(changed)}"
                )
        run._open()
        whole = cut_torn_line(folder / RESULTS)
        for number, record in enumerate(parse_records(whole, folder / RESULTS), start=1):
            missing = [field for field in run.key if field not in record]
            if missing:
                run.close()
                raise ValueError(
                    f"{folder / RESULTS}: expected {', '.join(run.key)} in line {number}, "
                    f"got no {missing[0]}"
                )
            run._remember(record)
        return run

    def _open(self) -> None:
        """Open results.jsonl for appending and keep other processes out while it is open."""
        assert self.path is not None
        descriptor = os.open(self.path / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise ValueError(
                f"{self.path}: expected a run that no process is writing, got one in use"
            ) from None
        self._lock = descriptor

    def close(self) -> None:
        """Let other processes have the folder. A closed run can still be read."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _identity(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record.get(field) for field in self.key)

    def _remember(self, record: Record) -> None:
        self._keys.add(self._identity(record))
        self.records.append(record)

    def tell(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take results as known that are written elsewhere."""
        for record in records:
            if self._identity(record) not in self._keys:
                self._remember(dict(record))

    def ordered(self) -> list[Record]:
        """The results in an order of their keys alone, whoever found them and when."""
        return sorted(self.records, key=lambda r: [_sortable(one) for one in self._identity(r)])

    def has(self, **key: Any) -> bool:
        """Whether the result of this key is known."""
        return self._identity(key) in self._keys

    def append(self, record: Record) -> None:
        """Add one result; when this returns it is on the disk. A known result is left alone."""
        if self._identity(record) in self._keys:
            return
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        if self.path is not None:
            if self._lock is None:
                raise ValueError(f"{self.path}: expected an open run, got a closed one")
            _write_all(self._lock, line.encode())
            os.fsync(self._lock)
        # What is kept is what a reader of the file would get, not what was passed in.
        self._remember(json.loads(line))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Store the summary: a function of the results alone, so the same bytes for the same."""
        self.summary = dict(summary)
        if self.path is not None:
            write_json(self.path / SUMMARY, self.summary)

    def file(self, *parts: str) -> Path | None:
        """The path of a file of this run, its folder made; None in memory."""
        if self.files is None:
            return None
        path = self.files.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _sortable(value: Any) -> tuple[bool, bool, float, str]:
    """None first, then numbers by their size, then texts."""
    if isinstance(value, int | float):
        return True, False, float(value), ""
    return value is not None, value is not None, 0.0, "" if value is None else str(value)


def check_new(path: str | os.PathLike[str]) -> None:
    """Check that a new run can have the folder ``path``, without making anything.

    ValueError if it holds anything; OSError if it, or the folder it would lie in, is not writable.
    """
    folder = Path(path)
    begun = f".{MANIFEST}.part"  # left by a process that was killed before it had a run
    if folder.is_dir() and any(entry.name != begun for entry in folder.iterdir()):
        raise ValueError(
            f"{folder}: expected a new or empty folder for the run, got one that holds files; "
            "to continue a run use --resume"
        )
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder for the run, got {place}: no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: expected a writable folder, got {place}: not writable")


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of the run in the folder ``path``; ValueError if there is none or it is none."""
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
    return manifest


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """The results of the run in the folder ``path``; a half-written last line is left out."""
    file = Path(path) / RESULTS
    data = file.read_bytes()
    return parse_records(data[: data.rfind(b"\n") + 1], file)


def parse_records(data: bytes, file: Path) -> list[Record]:
    """The results in ``data``, one JSON object a line; ValueError names the line that is none."""
    records: list[Record] = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{file}: expected a JSON object in line {number}, got {line[:40]!r}")
        records.append(record)
    return records


def cut_torn_line(file: Path) -> bytes:
    """Cut off what follows the last line end of ``file``; returns what stays."""
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    return whole


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
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write may stop short (a full disk, a signal); this goes on until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _lock(descriptor: int) -> None:
    """Take the file for this process until it is closed; the kernel lets go when we are killed."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
        **versions,
    }


def _commit() -> str | None:
    """The git commit of this code, marked when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent

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
