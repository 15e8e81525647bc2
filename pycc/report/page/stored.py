"""A finished run as its folder holds it, read and checked for a page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pycc import runs
from pycc.report.page.parse import parsed
from pycc.runs import Record

T = TypeVar("T")

Values = Mapping[str, object]
"""A JSON object whose names the run chose, such as its settings."""


@dataclass(frozen=True)
class Manifest:
    """The parts of a manifest that every kind of run has."""

    kind: str
    settings: Values
    fingerprints: Values
    environment: Values


@dataclass(frozen=True)
class StoredRun:
    """A finished run: its manifest, results and summary.

    >>> from tempfile import TemporaryDirectory
    >>> from pycc import runs
    >>> same = {"kind": "train", "settings": {"seed": 0}, "fingerprints": {}}
    >>> with TemporaryDirectory() as folder:
    ...     run = runs.open_or_resume(folder, key=("kind", "epoch"), **same)
    ...     run.finish({"epochs": 0})
    ...     run.close()
    ...     StoredRun.read(folder).kind
    'train'
    """

    folder: Path
    manifest: Manifest
    records: tuple[Record, ...]
    """The lines of ``results.jsonl``."""
    summary: Record

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> StoredRun:
        """Read a run folder.

        Raises:
            ValueError: a folder that has no run, one that is damaged, of another version of pycc,
                or not finished.
        """
        folder = Path(path)
        manifest = parsed(Manifest, runs.read_manifest(folder), str(folder / runs.MANIFEST))
        try:
            records = runs.read_records(folder)
        except OSError as error:
            raise ValueError(
                f"{folder}: expected {runs.RESULTS}, got none ({error.strerror})"
            ) from None
        file = folder / runs.SUMMARY
        if not file.exists():
            command = command_of(manifest)
            raise ValueError(
                f"{folder}: expected a finished run, got one with {len(records)} results and no "
                f"{runs.SUMMARY}; continue it with: pycc {command} --resume {folder}"
            )
        try:
            summary = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{file}: expected JSON, got something else") from None
        if not isinstance(summary, dict):
            raise ValueError(f"{file}: expected a JSON object, got {type(summary).__name__}")
        return cls(folder, manifest, tuple(records), summary)

    @property
    def kind(self) -> str:
        """The kind of run, such as ``attack``."""
        return self.manifest.kind

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def flags(self) -> Values:
        """The flags of the command; empty for a run that Python code started."""
        flags = self.manifest.settings.get("flags")
        return flags if isinstance(flags, Mapping) else {}

    def text(self, flag: str) -> str | None:
        """The value of a flag that is a text; None if the run has no such flag."""
        value = self.flags.get(flag)
        return value if isinstance(value, str) else None

    def rows(self, kind: type[T]) -> list[T]:
        """All results as dataclasses; ValueError names the line that is not one."""
        file = self.folder / runs.RESULTS
        return [
            parsed(kind, record, f"{file}, line {number}")
            for number, record in enumerate(self.records, start=1)
        ]

    def summarised(self, kind: type[T]) -> T:
        """The summary as a dataclass; ValueError names the field that is missing or wrong."""
        return parsed(kind, self.summary, str(self.folder / runs.SUMMARY))

    def setting(self, kind: type[T], name: str) -> T | None:
        """A setting of the manifest as a dataclass; None if it is missing or null."""
        value = self.manifest.settings.get(name)
        if value is None:
            return None
        return parsed(kind, value, f"{self.folder / runs.MANIFEST}, settings, {name}")


def command_of(manifest: Manifest) -> str:
    """The command that makes such a run, as in ``backdoor run``."""
    flags = manifest.settings.get("flags")
    stored = flags.get("command") if isinstance(flags, Mapping) else None
    if isinstance(stored, str):
        return stored
    return "attack" if manifest.kind == "photo" else manifest.kind  # pycc attack --photo
