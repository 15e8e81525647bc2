"""The run folder: what was asked, what was measured, and nothing lost when a run is killed.

``manifest.json`` says what was asked for and of what; ``results.jsonl`` holds one line per result,
on the disk as soon as it is known; everything else is derived from these two. A run may also live
in memory alone (``path`` None).
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycc.runs.files import write_all, write_json
from pycc.runs.manifest import MANIFEST, SCHEMA, differences, environment, read_manifest

Record = dict[str, Any]

RESULTS, SUMMARY = "results.jsonl", "summary.json"
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
        self.manifest: dict[str, Any] = json.loads(
            json.dumps({"schema": SCHEMA, **manifest}, allow_nan=False)
        )
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
    def resume(cls, path: str | os.PathLike[str], *, key: Sequence[str] = KEY) -> Run:
        """Continue the run in the folder ``path``; a half-written last result is cut off.

        ValueError if it is no run folder, is damaged, or is being written by another process.
        """
        folder = Path(path)
        run = cls(folder, read_manifest(folder), key)
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
            write_all(self._lock, line.encode())
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


def open_or_resume(
    folder: str | os.PathLike[str] | None,
    *,
    kind: str,
    settings: Mapping[str, Any],
    fingerprints: Mapping[str, Any],
    key: Sequence[str],
    command: Sequence[str] = (),
    machine: Collection[str] = (),
    resume: bool | None = None,
) -> Run:
    """Begin a run, or continue the one in ``folder`` if it is the same.

    Its manifest holds the schema, ``kind``, ``command`` (arguments, where there is one),
    ``settings`` (all that results depend on, defaults included), ``fingerprints`` of data and
    weights, and the environment.

    Args:
        folder: new or empty for a new run; None keeps the results in memory.
        key: fields that identify a result.
        settings: those of a command's flags under ``flags``.
        machine: names of settings and flags that no result depends on; a resumed run may have
            others.
        resume: whether to continue; None continues if the folder holds a run.

    Raises:
        ValueError: to be resumed, a run of another schema or kind, or with other settings or
            fingerprints (one line that says what differs); a folder that is no run, or is in use.

    A warning names what differs in the environment, since the last digits may then differ too.
    """
    if resume is None:
        resume = folder is not None and (Path(folder) / MANIFEST).exists()
    if not resume:
        manifest = {
            "kind": kind,
            "command": list(command),
            "settings": settings,
            "fingerprints": fingerprints,
            "environment": environment(),
        }
        return Run.create(folder, manifest, key=key)
    if folder is None:
        raise ValueError(f"{kind}: resume needs the run folder as out")
    check_resumed(folder, kind=kind, settings=settings, fingerprints=fingerprints, machine=machine)
    now, before = environment(), read_manifest(folder).get("environment")
    before = before if isinstance(before, dict) else {}
    for difference in differences({name: before.get(name) for name in now}, now):
        warnings.warn(f"{folder}: {difference}; last digits may differ", stacklevel=2)
    return Run.resume(folder, key=key)


def check_resumed(
    folder: str | os.PathLike[str],
    *,
    kind: str,
    settings: Mapping[str, Any],
    fingerprints: Mapping[str, Any],
    machine: Collection[str] = (),
) -> None:
    """Check that the run in ``folder`` may be continued; ValueError as of ``open_or_resume``."""
    kept = read_manifest(folder)
    if kept.get("kind") != kind:
        raise ValueError(f"{folder}: expected a run of kind {kind!r}, got {kept.get('kind')!r}")
    check_same(folder, kept, {"settings": settings, "fingerprints": fingerprints}, machine)


def check_same(
    what: str | os.PathLike[str],
    kept: Mapping[str, Any],
    now: Mapping[str, Any],
    machine: Collection[str] = (),
) -> None:
    """ValueError, naming what differs, unless ``settings`` and ``fingerprints`` are the same."""

    def compared(of: Mapping[str, Any]) -> Any:
        settings = of.get("settings")
        if isinstance(settings, Mapping):
            settings = _without(settings, machine)
            if isinstance(settings.get("flags"), Mapping):
                settings["flags"] = _without(settings["flags"], machine)
        plain = {"settings": settings, "fingerprints": of.get("fingerprints")}
        return json.loads(json.dumps(plain, allow_nan=False))

    changed = differences(compared(kept), compared(now))
    if changed:
        raise ValueError(
            f"{what}: a resumed run keeps its settings, data and weights; {'; '.join(changed)}"
        )


def _without(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


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


def _lock(descriptor: int) -> None:
    """Take the file for this process until it is closed; the kernel lets go when we are killed."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
