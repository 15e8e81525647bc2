"""Weights metadata: the known facts about weights, and the check that they hold.

The metadata is JSON, inside this package's own files or beside a foreign one as ``FILE.json`` (or
in its ``config.json``, ``pycc.models.hub``):
``model`` and its ``options`` (input convention, output scale, variant), ``stride``,
``probe_count``, ``probe_checksum`` and ``blank_count`` (``pycc.models.probe``), and any other known
facts, such as ``data``, ``mae``, ``rmse``, ``recipe``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from pycc.models import hub
from pycc.models.base import CounterModel
from pycc.models.options import shown
from pycc.models.probe import probe_result

TOLERANCE = 1e-4
"""Largest relative difference of a count from the metadata's, for this package's own weights."""
_MOST_PEOPLE = 1e12
COUNTS = {
    "probe_count": "a count of {:.6g} on the probe image",
    "probe_checksum": "a checksum of {:.6g} of the probe image's map",
    "blank_count": "a count of {:.6g} on the bare ground",
}


class CountsDifferError(ValueError):
    """A counter does not count the probe image as its metadata state."""


def weights_metadata(counter: CounterModel, facts: Mapping[str, object]) -> dict[str, object]:
    """Return the metadata of a counter: ``facts`` and the counter's own properties.

    ValueError if it is not JSON.
    """
    full = {
        "model": counter.name,
        "options": counter.options(),
        "stride": counter.stride,
        **facts,
        **probe_result(counter).json(),
    }
    written(full)
    return full


_KNOWN = (
    *COUNTS, "model", "options", "stride", "data", "mae", "rmse", "recipe", "source",
)  # fmt: skip


def written(content: Mapping[str, object]) -> str:
    """Format weights metadata as JSON; ValueError if it is not JSON."""
    try:
        return json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise ValueError(f"weights: the metadata must be JSON: {text}") from None


def beside(path: Path) -> Path:
    """Return the path of the metadata of a foreign weights file."""
    return path.with_name(path.name + ".json")


def read_beside(path: Path) -> dict[str, object]:
    """Read the metadata beside a weights file, or {}; ValueError if it is not a JSON object.

    It is in ``FILE.json``, or for ``model.safetensors`` in the entry ``pycc`` of ``config.json``
    (``pycc.models.hub``).
    """
    if (file := beside(path)).is_file():
        return _object(file)
    config = path.with_name(hub.CONFIG)
    if path.name != hub.TENSORS or not config.is_file():
        return {}
    entry = _object(config).get(hub.ENTRY, {})
    if not isinstance(entry, dict):
        raise ValueError(f"weights: {config}: {hub.ENTRY} must be a JSON object")
    return entry


def _object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:160]
        raise ValueError(f"weights: {file} is not readable weights metadata: {text}") from None
    if not isinstance(content, dict):
        raise ValueError(f"weights: {file}: the metadata must be a JSON object")
    return content


def check_metadata(
    counter: CounterModel,
    metadata: Mapping[str, object],
    source: str,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ValueError unless the counter's results on the probe image match its metadata.

    ``tolerance`` is relative, and absolute below one person. Counts that the metadata does not
    state are not checked.
    """
    for name in metadata:
        meant = get_close_matches(name, _KNOWN, 1, 0.85)
        if name not in _KNOWN and meant:
            raise ValueError(
                f"weights: {source}: the metadata has an unknown entry {shown(name)}; "
                f"{meant[0]!r} is meant"
            )
    stated = metadata.get("stride", counter.stride)
    if stated != counter.stride:
        raise ValueError(
            f"weights: {source}: the metadata states stride {shown(stated)}, the counter has "
            f"{counter.stride}"
        )
    stated_counts = {name: metadata[name] for name in COUNTS if name in metadata}
    for name, value in stated_counts.items():
        if not isinstance(value, int | float) or not abs(value) <= _MOST_PEOPLE:
            raise ValueError(
                f"weights: {source}: {name} must be a finite number, got {shown(value)}"
            )
    if not stated_counts:
        warnings.warn(
            f"weights: {source}: the metadata states no count on the probe image, so that it "
            "cannot be checked",
            stacklevel=5,
        )
        return
    measured = probe_result(counter).json()
    for name, value in stated_counts.items():
        assert isinstance(value, int | float)
        if not abs(measured[name] - value) <= tolerance * max(1.0, abs(value)):
            raise CountsDifferError(
                f"weights: {source}: the metadata states {COUNTS[name].format(value)}, got "
                f"{measured[name]:.6g}; the weights or their input convention are not those "
                "stated"
            )
