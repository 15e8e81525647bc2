"""The origin of results: settings, hashes and versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pycc.report.page.blocks import Facts
from pycc.report.page.stored import StoredRun, Values


def provenance(run: StoredRun) -> tuple[Facts, ...]:
    """The settings, the hashes of data and weights, and the versions of a run.

    Of a run that a command started, the settings are the command's flags.
    """
    manifest = run.manifest
    parts = (
        ("Settings", run.flags or manifest.settings),
        ("Hashes of data and weights (SHA-256)", manifest.fingerprints),
        ("Versions and machine", manifest.environment),
    )
    return tuple(Facts(caption, tuple(_entries("", values))) for caption, values in parts if values)


def _entries(name: str, values: Values) -> Iterator[tuple[str, str]]:
    """Names and values; those of nested objects are joined by points."""
    for key, value in values.items():
        inner = f"{name}.{key}" if name else str(key)
        if isinstance(value, Mapping) and value:
            yield from _entries(inner, value)
        elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            yield inner, ", ".join(map(str, value)) or "none"
        else:
            text = "not given" if value is None else json.dumps(value)
            yield inner, value if isinstance(value, str) else text
