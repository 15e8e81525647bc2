"""The run folder: a manifest and results that survive if the process is killed.

``manifest.json`` holds the settings and the fingerprints of data and weights; ``results.jsonl`` has
one line per result, flushed to the disk when it is appended. Everything else is derived from these
two. A run may also exist in memory alone (``path`` None).
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pycc.runs.files import write_all, write_json
from pycc.runs.manifest import MANIFEST, SCHEMA, differences, environment, read_manifest

Record = dict[str, Any]
"""One result: a JSON object, a line of ``results.jsonl``."""

RESULTS, SUMMARY = "results.jsonl", "summary.json"
KEY = ("index", "condition", "patch_size")


class Run:
    """A run: its manifest, its results so far and, if it is on the disk, its folder.

    ``key`` names the fields that identify a result: a run never has two results with equal values
    of these fields. Use :func:`open_or_resume`, ``Run.create`` or ``Run.resume``.

    Example:
        >>> from pycc.runs import Run
        >>> run = Run.create(None, {"kind": "example"}, key=("index",))
        >>> run.append({"index": 1, "count": 8.0})
        >>> run.append({"index": 0, "count": 5.0})
        >>> run.has(index=1), [record["count"] for record in run.ordered()]
        (True, [5.0, 8.0])
    """

    def __init__(
        self, path: Path | None, manifest: Mapping[str, Any], key: Sequence[str] = KEY
    ) -> None:
        self.path = path
        self.key = tuple(key)
        # Converted as the file is: tuples become lists; what is not JSON, such as a path, fails.
        self.manifest: dict[str, Any] = json.loads(
            json.dumps({"schema": SCHEMA, **manifest}, allow_nan=False)
        )
        self.records: list[Record] = []
        self.summary: dict[str, Any] = {}
        self.files: Path | None = path
        """The folder of the other files of this run."""
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
        """Start a run in the folder ``path`` (created if missing; it must be empty), or in memory.

        Raises:
            ValueError: a folder that is not empty, or a manifest that is not JSON.
            OSError: a folder that cannot be written.
        """
        if path is None:
            return cls(None, manifest, key)
        check_new(path)
        folder = Path(path)
        run = cls(
            folder, manifest, key
        )  # raises for a manifest that is not JSON, before anything is created
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, run.manifest)
        run._open()
        return run

    @classmethod
    def resume(cls, path: str | os.PathLike[str], *, key: Sequence[str] = KEY) -> Run:
        """Continue the run in the folder ``path``; a partly written last result is removed.

        Raises:
            ValueError: a folder that has no run, is damaged, or is in use by another process.
        """
        folder = Path(path)
        run = cls(folder, read_manifest(folder), key)
        run._open()
        data = cut_torn_line(folder / RESULTS)
        for number, record in enumerate(parse_records(data, folder / RESULTS), start=1):
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
        """Open results.jsonl for appending and lock it against other processes."""
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

    def __enter__(self) -> Self:
        """Return the run, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder for other processes. A closed run can still be read."""
        if self._lock is not None:
            _unlock(self._lock)
            os.close(self._lock)
            self._lock = None

    def _identity(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record.get(field) for field in self.key)

    def _remember(self, record: Record) -> None:
        self._keys.add(self._identity(record))
        self.records.append(record)

    def include(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add results that another process has written; nothing is written to this folder."""
        for record in records:
            if self._identity(record) not in self._keys:
                self._remember(dict(record))

    def ordered(self) -> list[Record]:
        """Return the results sorted by their keys: None first, then numbers, then texts."""
        return sorted(self.records, key=lambda r: [_sortable(part) for part in self._identity(r)])

    def has(self, **key: Any) -> bool:
        """Whether the run has a result with these values of its key fields."""
        return self._identity(key) in self._keys

    def append(self, record: Record) -> None:
        """Add one result and flush it to the disk; do nothing if its key is known.

        Raises:
            ValueError: a run that is closed, or a result with NaN or infinity.
            OSError: the result cannot be written.
        """
        if self._identity(record) in self._keys:
            return
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        if self.path is not None:
            if self._lock is None:
                raise ValueError(f"{self.path}: expected an open run, got a closed one")
            write_all(self._lock, line.encode())
            os.fsync(self._lock)
        # Kept as a reader of the file gets it, not as it was passed in.
        self._remember(json.loads(line))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Store the summary; it must be a function of the results, so that it is reproducible."""
        self.summary = dict(summary)
        if self.path is not None:
            write_json(self.path / SUMMARY, self.summary)

    def file(self, *parts: str) -> Path | None:
        """Return the path of a file of this run and create its folder; None for a run in memory."""
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
    """Begin a run, or continue the run in ``folder`` if its settings and inputs are the same.

    The manifest stores the schema, ``kind``, ``command``, ``settings``, ``fingerprints`` and the
    environment. If the environment of a resumed run differs, a warning names the differences,
    since the last digits of results may then differ.

    Args:
        folder: a new or empty folder for a new run; None keeps the results in memory.
        kind: the kind of run, such as the command's name.
        settings: all values that results depend on, defaults included; those of a command's flags
            under ``flags``.
        fingerprints: hashes of data and weights (:func:`fingerprint`).
        key: names of the fields that identify a result.
        command: arguments of the command, if any; not compared.
        machine: names of settings and flags that no result depends on; they may change when a run
            is resumed.
        resume: whether to continue; None continues if the folder contains a run.

    Returns:
        The run, open for appending.

    Raises:
        ValueError: a run to be resumed that has another schema, kind, settings or fingerprints (in
            one line that names the differences), that does not exist, or that is in use; a folder
            for a new run that is not empty.
        OSError: a folder that cannot be written.

    Example:
        >>> from pycc import runs
        >>> run = runs.open_or_resume(
        ...     None, kind="example", settings={"seed": 0}, fingerprints={}, key=("index",)
        ... )
        >>> run.append({"index": 0, "count": 12.0})
        >>> run.records
        [{'count': 12.0, 'index': 0}]
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
    """Check that the run in ``folder`` may be continued with these settings and inputs.

    Arguments and errors are those of :func:`open_or_resume`.

    Example:
        >>> import tempfile
        >>> from pycc import runs
        >>> same = {"kind": "example", "settings": {"seed": 0}, "fingerprints": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs.open_or_resume(folder, key=("index",), **same).close()
        ...     runs.check_resumed(folder, **same)  # raises ValueError if anything differs
    """
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
    """Raise ValueError if ``settings`` or ``fingerprints`` of two manifests differ.

    Args:
        what: the run, for the error.
        kept: the stored manifest.
        now: a mapping with the present ``settings`` and ``fingerprints``.
        machine: names of settings and flags that are not compared.

    Raises:
        ValueError: one line that names every difference.

    Example:
        >>> from pycc import runs
        >>> before, now = ({"settings": {"seed": seed}, "fingerprints": {}} for seed in (0, 1))
        >>> runs.check_same("a", before, now)
        Traceback (most recent call last):
        ...
        ValueError: a: a resumed run keeps its settings, data and weights; settings.seed was 0, is 1
        >>> runs.check_same("a", before, now, machine=["seed"])
    """

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
    """Return a sort key: None first, then numbers by their size, then texts."""
    if isinstance(value, int | float):
        return True, False, float(value), ""
    return value is not None, value is not None, 0.0, "" if value is None else str(value)


def check_new(path: str | os.PathLike[str]) -> None:
    """Check that a new run can use the folder ``path``, without creating anything.

    Raises:
        ValueError: a folder that is not empty.
        OSError: a folder that is not writable, or whose parent is no writable folder.

    Example:
        >>> import tempfile
        >>> from pycc import runs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs.check_new(folder)
    """
    folder = Path(path)
    begun = f".{MANIFEST}.part"  # left by a process that was killed while it created the run
    if folder.is_dir() and any(entry.name != begun for entry in folder.iterdir()):
        raise ValueError(
            f"{folder}: expected a new or empty folder for the run, got one that contains files; "
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
    """Read the results of the run in the folder ``path``; a partly written last line is ignored.

    Raises:
        OSError: the folder has no results file, or it cannot be read.
        ValueError: a line that is not a JSON object.

    Example:
        >>> import tempfile
        >>> from pycc import runs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = runs.Run.create(folder, {"kind": "example"}, key=("index",))
        ...     run.append({"index": 0})
        ...     run.close()
        ...     runs.read_records(folder)
        [{'index': 0}]
    """
    file = Path(path) / RESULTS
    data = file.read_bytes()
    return parse_records(data[: data.rfind(b"\n") + 1], file)


def parse_records(data: bytes, file: Path) -> list[Record]:
    """Parse results, one JSON object per line; ValueError names the first line that is not one."""
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
    """Remove from ``file`` what follows the last line end; return the remaining content."""
    data = file.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        os.truncate(file, len(complete))
    return complete


def _unlock(descriptor: int) -> None:
    """Release the lock although forked processes, such as workers that load data, still hold it."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock(descriptor: int) -> None:
    """Lock the file until it is closed; the kernel releases the lock if the process is killed."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
