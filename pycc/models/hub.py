"""Weights in the layout of Hugging Face: a folder, or a repository of its hub.

A folder holds ``model.safetensors`` and ``config.json``, whose entry ``pycc`` is the weights
metadata; its other entries belong to other programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pycc.models.foreign import third_party
from pycc.runs import write_atomic

PREFIX = "hf://"
"""What the name of weights on the hub begins with: ``hf://OWNER/NAME[@REVISION][/FILE]``."""
TENSORS = "model.safetensors"
CONFIG = "config.json"
ENTRY = "pycc"
"""The entry of ``config.json`` that holds weights metadata."""
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@\s]+))?(?:/([^\s@]+))?")


def weights_in(folder: Path) -> Path:
    """Return the weights file of a local folder; ValueError if it has none."""
    file = folder / TENSORS
    if not file.is_file():
        raise ValueError(
            f"weights: {folder} is a folder without {TENSORS}: give the file of the weights"
        )
    return file


def downloaded(name: str) -> Path:
    """Return the file of weights on the hub, or the folder of ``config.json`` and the weights.

    ``huggingface_hub`` downloads what its cache lacks. ValueError, in one line, for a malformed
    name, if ``huggingface_hub`` is missing, and if it fails.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"weights: expected hf://OWNER/NAME[@REVISION][/FILE], got {name}")
    repository, revision, file = match.groups()
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"weights: downloading {name} needs huggingface_hub: pip install 'pycc[hub]'"
        ) from None
    with third_party(name, "cannot be downloaded"):
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        layout = [CONFIG, TENSORS]
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=layout)
        )


def write_folder(folder: Path, tensors: bytes, metadata: Mapping[str, object]) -> None:
    """Write a folder of a .safetensors file's content and weights metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TENSORS, tensors)
    config = json.dumps({ENTRY: metadata}, allow_nan=False, indent=2)
    write_atomic(folder / CONFIG, f"{config}\n".encode())
