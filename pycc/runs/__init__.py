"""Runs: a folder with a manifest and results, resumable, written by one process or several."""

from pycc.runs.files import write_atomic, write_json
from pycc.runs.folder import (
    RESULTS,
    SUMMARY,
    Record,
    Run,
    check_new,
    check_resumed,
    check_same,
    open_or_resume,
    read_records,
)
from pycc.runs.manifest import (
    MANIFEST,
    SCHEMA,
    another_command,
    check_flags,
    differences,
    environment,
    fingerprint,
    read_flags,
    read_manifest,
)
from pycc.runs.shards import Shards, replicated, sharded

__all__ = [
    "MANIFEST",
    "RESULTS",
    "SCHEMA",
    "SUMMARY",
    "Record",
    "Run",
    "Shards",
    "another_command",
    "check_flags",
    "check_new",
    "check_resumed",
    "check_same",
    "differences",
    "environment",
    "fingerprint",
    "open_or_resume",
    "read_flags",
    "read_manifest",
    "read_records",
    "replicated",
    "sharded",
    "write_atomic",
    "write_json",
]
