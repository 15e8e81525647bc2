"""Read, check and write weights in the published formats and in this package's own.

Nothing here runs code from a weights file: HDF5 and npz hold arrays only, and pickles are read by
torch's restricted unpickler.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.checks import lacks_memory
from pycc.models import hub, keras_vgg, tensors_file, wrappers
from pycc.models import metadata as described
from pycc.models.archive import is_script, read_script
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import Convention
from pycc.models.families import unfit, unprefixed
from pycc.models.foreign import content_of, third_party
from pycc.models.python2 import translated
from pycc.models.wrappers import Leaf
from pycc.registry import nearest
from pycc.runs import write_atomic

_FORMATS = {
    **dict.fromkeys((".h5", ".hdf5"), "h5"),
    ".npz": "npz",
    ".safetensors": "safetensors",
    **dict.fromkeys((".pth", ".pt", ".tar", ".param", ".ckpt", ".model"), "torch"),
}
_WANTED = {
    **{"h5": "an HDF5 file", "npz": "a readable npz", "torch": "a torch file"},
    "safetensors": "a readable .safetensors file",
}
_METADATA = "metadata"
_OURS = "pycc"
"""The key of weights metadata in torch files, which may have others of their own."""
_BATCHES = "num_batches_tracked"
# What training scripts store beside weights: numpy scores, argparse settings. None runs code.
_HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    *{type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefdg", "O", "U", "S")},
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.zeros(1).__reduce__()[0],
    (np.zeros(1).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
    codecs.encode,
    argparse.Namespace,
]
_PACKAGED = Path(__file__).parent / "pretrained"


def builtin() -> list[str]:
    """Return the names of the weights in the package; ``load`` accepts them like a path.

    >>> builtin()
    ['mcnn-synthetic']
    """
    return sorted(path.stem for path in _PACKAGED.glob("*.npz"))


def locate(weights: str | os.PathLike[str]) -> Path:
    """Return the file of built-in weights or, for any other name, the path itself.

    Weights whose name begins with ``hf://`` are downloaded (``pycc.models.hub``); ValueError if
    that fails. Of a folder, its ``model.safetensors`` is returned; ValueError if it has none.
    """
    if isinstance(weights, str) and weights in builtin():
        return _PACKAGED / f"{weights}.npz"
    on_hub = isinstance(weights, str) and weights.startswith(hub.PREFIX)
    path = hub.downloaded(str(weights)) if on_hub else Path(weights)
    return hub.weights_in(path) if path.is_dir() else path


class Stored(NamedTuple):
    """The content of a weights file."""

    state: dict[str, Tensor]
    """Its tensors under their published keys."""
    metadata: dict[str, object]
    """The weights metadata in the file or beside it; {} if there is none."""
    prefixes: frozenset[str]
    """The prefixes of training wrappers, which were removed from the keys."""
    place: str
    """The names under which a checkpoint stores them, joined by dots; "" if it holds only them."""
    left_out: list[str]
    """Keys beside them, of no family, that are more than a count of steps."""
    convention: Convention | None = None
    """The input that the tensors expect, if the layout of the file shows it."""


def read_weights(path: Path, *, name: str | None = None) -> Stored:
    """Read the tensors of a weights file under their published keys, and its metadata.

    The format is known by the suffix: HDF5 (.h5, .hdf5; needs h5py), .safetensors (needs
    safetensors), torch (.pth, .pt, .pth.tar, .param, .ckpt, .model; also of Python 2; or a
    TorchScript archive, whose code is not run), npz (this package's own). The state dict may be
    nested in a checkpoint to any depth and its keys may have prefixes: ``pycc.models.wrappers``
    finds it, and ``pycc.models.families`` removes the prefixes that hide the keys of a family (of
    ``name`` first, if given). If only the keys under one prefix belong to a family, only these are
    taken. The weights metadata may also lie beside the file
    (``pycc.models.metadata.read_beside``).

    FileNotFoundError for a missing file. ValueError, naming the file, for one that cannot be read,
    is something else (a Git LFS pointer, a page, an archive of files), requires code, holds several
    state dicts that may be meant, or holds something other than dense, finite arrays of floats or
    integers.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"weights: no such file: {path}; built-in weights: {', '.join(builtin())}"
            f"{nearest(str(path), builtin())}"
        )
    if not path.is_file():
        raise ValueError(f"weights: {path} is not a file")
    content = _content(path)
    candidate = wrappers.find(content.leaves, path, name)
    state, prefixes = unprefixed(_clean(candidate.state, path), name)
    metadata = content.metadata or described.read_beside(path)
    return Stored(state, metadata, prefixes, candidate.path, candidate.left_out, content.convention)


class _Content(NamedTuple):
    """What a file holds: everything in it with its place, and what it says of itself."""

    leaves: list[Leaf]
    metadata: dict[str, object]
    convention: Convention | None


def _content(path: Path) -> _Content:
    """Read a file in the format that its suffix names."""
    suffix = path.suffix.lower()
    content = content_of(path)
    if suffix not in _FORMATS:
        known = ", ".join(_FORMATS)
        what = f"; the file is {content.words}: {content.remedy}" if content else ""
        raise ValueError(f"weights: {path}: unknown format {suffix!r}; known: {known}{what}")
    if content is not None and content.format != _FORMATS[suffix]:
        raise ValueError(
            f"weights: {path} is not {_WANTED[_FORMATS[suffix]]} but {content.words}: "
            f"{content.remedy}"
        )
    if _FORMATS[suffix] == "torch":
        stored, stated = _without_metadata(_read_torch(path), path)
        return _Content(wrappers.leaves(stored, path), stated, None)
    if _FORMATS[suffix] == "h5":
        entries = _read_h5(path)
        if (features := keras_vgg.features(entries)) is not None:
            return _Content(_flat(features.state), {}, features.convention)
        leaves: list[Leaf] = [(tuple(key.split("/")), value) for key, value in entries.items()]
        return _Content(leaves, {}, None)
    read = _read_npz if _FORMATS[suffix] == "npz" else tensors_file.read
    tensors, metadata = read(path)
    return _Content(_flat(tensors), _checked_metadata(metadata, path), None)


def _without_metadata(content: object, path: Path) -> tuple[object, dict[str, object]]:
    """Part what ``save`` wrote into a torch file into the weights and their metadata."""
    if not isinstance(content, dict) or not isinstance(content.get(_OURS), str):
        return content, {}
    with third_party(path, "has damaged metadata"):
        metadata: object = json.loads(content[_OURS])
    rest = {key: value for key, value in content.items() if key != _OURS}
    return rest, _checked_metadata(metadata, path)


def _checked_metadata(metadata: object, path: Path) -> dict[str, object]:
    if not isinstance(metadata, dict):
        raise ValueError(f"weights: {path}: the metadata must be a JSON object")
    return metadata


def _flat(entries: Mapping[str, object]) -> list[Leaf]:
    return [((key,), value) for key, value in entries.items()]


@contextmanager
def naming_weights(weights: object) -> Iterator[None]:
    """Name the weights in an out-of-memory error, as ``pycc.checks.naming`` names images."""
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            error.add_note(f"weights {weights}")
        raise


def _clean(entries: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in entries.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"weights: {path}: entry {str(key)[:60]!r} must be a tensor, "
                f"got {type(value).__name__}"
            )
        kind = unfit(value)
        if kind is not None:
            raise ValueError(
                f"weights: {path}: entry {str(key)[:60]!r} must be a dense tensor of "
                f"float16, bfloat16, float32, float64 or integers, got {kind}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"weights: {path}: entry {str(key)[:60]!r} holds NaN or infinity")
        state[str(key)] = value
    if not state:
        raise ValueError(f"weights: {path} holds no tensors")
    return state


def _read_h5(path: Path) -> dict[str, object]:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"weights: reading {path} needs h5py: pip install 'pycc[h5]'") from None
    if not h5py.is_hdf5(path):
        raise ValueError(f"weights: {path} is not an HDF5 file")
    state: dict[str, object] = {}
    with third_party(path, "cannot be read"), h5py.File(path, "r") as file:
        datasets: list[str] = []
        file.visititems(
            lambda key, item: datasets.append(key) if isinstance(item, h5py.Dataset) else None
        )
        for key in datasets:
            state[str(key)] = wrappers.tensor_of(np.asarray(file[key][()]))
    return state


def _read_npz(path: Path) -> tuple[Mapping[str, object], object]:
    state: dict[str, object] = {}
    metadata: object = {}
    with (
        third_party(path, "is not a readable npz"),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        for key in arrays.files:
            if key == _METADATA:
                metadata = json.loads(str(arrays[key]))
            else:
                state[key] = wrappers.tensor_of(arrays[key])
    return state, metadata


def _read_torch(path: Path) -> object:
    content: object = None
    refusal: pickle.UnpicklingError | None = None
    with third_party(path, "cannot be read"):
        try:
            if is_script(path):
                return read_script(path)
            with torch.serialization.safe_globals(_HARMLESS):
                source = translated(path) or path
                content = torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refusal = error
    if refusal is not None:
        # torch's own message advises to disable the protection; it is not passed on.
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80"
        if pickled or "GLOBAL" in str(refusal):
            required = re.search(r"GLOBAL ([\w.]+)", str(refusal))
            what = f" ({required[1]})" if required else ""
            raise ValueError(
                f"weights: {path} is refused: its pickle asks for more than tensors{what}, "
                "which could run code; where it was made, save the state dict alone: "
                "torch.save(model.state_dict(), FILE)"
            )
        raise ValueError(f"weights: {path} is not a torch file")
    return content


def fit(counter: CounterModel, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``counter.net``; ValueError lists every kind of mismatch on one line."""
    _, problems = misfit(counter, state)
    if problems:
        raise ValueError(
            f"weights: {source} does not fit {counter.name} {_settings(counter)}: {problems}"
        )
    # Older torch stored no counts of batches, which only training uses.
    counts = {k: v for k, v in counter.net.state_dict().items() if k.endswith(_BATCHES)}
    try:
        used = {k: v for k, v in state.items() if not _is_unused(counter, k)}
        counter.net.load_state_dict({**counts, **used})
    except ValueError as error:  # values that a network refuses
        raise ValueError(
            f"weights: {source} does not fit {counter.name} {_settings(counter)}: {error}"
        ) from None


def _is_unused(counter: CounterModel, key: str) -> bool:
    return key.startswith(counter.unused)


def misfit(counter: CounterModel, state: Mapping[str, Tensor]) -> tuple[int, str]:
    """Return the number of missing or unexpected keys, and a description of all misfits."""
    expected = counter.net.state_dict()
    problems = []
    missing = [key for key in expected if key not in state and not key.endswith(_BATCHES)]
    unexpected = [key for key in state if key not in expected and not _is_unused(counter, key)]
    wrong = [
        f"{key} {list(state[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    # Copied as floats, integers would be taken for the values that they only encode.
    coded = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')} instead of floats"
        for key, tensor in expected.items()
        if key in state and tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    kinds = ("missing", "unexpected", "wrong shape", "wrong type")
    for what, keys in zip(kinds, (missing, unexpected, wrong, coded), strict=True):
        if keys:
            problems.append(f"{what} {shortened(keys)}")
    return len(missing) + len(unexpected), "; ".join(problems)


def save(
    counter: CounterModel, path: str | Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Write a counter's weights and metadata; a file appears complete or not at all.

    ``path`` is a .pth file, which ``torch.load`` reads with its keys ``state_dict`` and ``pycc``
    (the metadata as JSON), an .npz file, a .safetensors file (needs safetensors), whose header
    holds the metadata, or a folder (a name without suffix), into which ``model.safetensors`` and
    ``config.json`` are written: the layout of Hugging Face.

    Only registered counters in float32; keep a wrapped network with torch.save. ``metadata``
    (recipe, training time, data, errors on test scenes, …) is extended by the counter's own facts
    (``pycc.models.metadata``). ValueError for other counters and for metadata that is not JSON;
    OSError if the file cannot be written.

    >>> import tempfile
    >>> from pycc import models
    >>> counter = models.load("mcnn-synthetic")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(counter, f"{folder}/copy.npz", metadata={"data": "synthetic"})
    ...     copy = models.load(f"{folder}/copy.npz")
    >>> copy.metadata["data"], copy.stride
    ('synthetic', 4)
    """
    target = Path(path)
    if target.suffix not in ("", ".npz", ".pth", ".safetensors"):
        raise ValueError(
            f"weights: save writes .pth, .npz or .safetensors files, or a folder (a name without "
            f"suffix), got {target}"
        )
    if counter.name not in MODELS.names():
        raise ValueError(
            f"weights: {counter.name!r} is made of a user's network, which load could not build "
            "again; keep its state dict with torch.save"
        )
    state = counter.net.state_dict()
    other = {t.dtype for t in state.values() if t.is_floating_point()}
    if other != {torch.float32}:
        raise ValueError(f"weights: save writes float32 counters, got {sorted(map(str, other))}")
    full = described.weights_metadata(counter, metadata or {})
    if target.suffix == ".npz":
        write_atomic(target, _npz(state, described.written(full)))
        return
    if target.suffix == ".pth":
        buffer = io.BytesIO()
        on_cpu = {key: tensor.detach().cpu() for key, tensor in state.items()}
        torch.save({"state_dict": on_cpu, _OURS: described.written(full)}, buffer)
        write_atomic(target, buffer.getvalue())
        return
    content = tensors_file.encoded(state, described.written(full), target)
    if target.suffix == ".safetensors":
        write_atomic(target, content)
    else:
        hub.write_folder(target, content, full)


def _npz(state: Mapping[str, Tensor], metadata: str) -> bytes:
    arrays: dict[str, NDArray[np.generic]] = {
        key: np.asarray(tensor.detach().cpu().numpy(), order="C") for key, tensor in state.items()
    }
    arrays[_METADATA] = np.array(metadata)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _settings(counter: CounterModel) -> str:
    return "(" + ", ".join(f"{k}={v!r}" for k, v in counter.options().items()) + ")"


def shortened(keys: Iterable[str], shown: int = 3) -> str:
    """Format the first few keys, and the number of the others."""
    listed = list(keys)
    rest = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(" ".join(key.split())[:80] for key in listed[:shown]) + rest
