"""Read and write .safetensors files: tensors, and weights metadata in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pycc.models.foreign import third_party

_METADATA = "pycc"
"""The entry of the header that holds weights metadata, as JSON; others belong to other programs."""
_NEEDS = "needs safetensors: pip install 'pycc[safetensors]'"


def read(path: Path) -> tuple[dict[str, Tensor], object]:
    """Read the tensors of a file, and the weights metadata in its header ({} if there is none).

    ValueError, in one line that names the file, if it is damaged or safetensors is missing.
    """
    try:
        from safetensors import safe_open
    except ImportError:
        raise ValueError(f"weights: reading {path} {_NEEDS}") from None
    with (
        third_party(path, "is not a readable .safetensors file"),
        safe_open(path, framework="pt") as file,
    ):
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        return state, json.loads((file.metadata() or {}).get(_METADATA, "{}"))


def encoded(state: Mapping[str, Tensor], metadata: str, path: Path) -> bytes:
    """Return the content of a file with these tensors and this weights metadata, as JSON.

    ValueError, naming the ``path`` to be written, if safetensors is missing.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise ValueError(f"weights: writing {path} {_NEEDS}") from None
    # Copies: the format has no tensors that share memory.
    dense = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    content: bytes = save(dense, {"format": "pt", _METADATA: metadata})
    return content
