"""Checkpoints: a training that is killed anywhere goes on from one as if it had not been."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pycc.checks import lacks_memory
from pycc.runs import check_same, write_atomic

NAME = "checkpoint.pt"


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all: the one before stays until the new one is there.

    OSError where it cannot be written, such as on a full disk.
    """
    write(folder / NAME, content)


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write what ``torch.load`` reads back, whole or not at all; OSError as of ``save``."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(file, buffer.getvalue())


def load(folder: Path, made_with: Mapping[str, Any]) -> dict[str, Any] | None:
    """The folder's checkpoint, on the CPU; None where there is none yet.

    ``made_with`` is what it must have been made with: its entry of that name. ValueError for a file
    that is damaged, is none of this training, or was made with something else (names it).
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # On a damaged file torch, zipfile and the unpickler fail with any type.
    except Exception as error:
        if lacks_memory(error):
            raise
        raise ValueError(f"{file}: cannot be read as a checkpoint") from None
    if not isinstance(content, dict) or not isinstance(content.get("made_with"), dict):
        raise ValueError(f"{file}: no checkpoint of this trainer")
    check_same(file, content["made_with"], made_with)
    return content
