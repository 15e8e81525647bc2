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
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.checks import lacks_memory, one_line
from pycc.models import metadata as described
from pycc.models import wrappers
from pycc.models.archive import is_script, read_script
from pycc.models.base import MODELS, CounterModel
from pycc.models.families import unfit, unprefixed
from pycc.models.foreign import CUT_OFF, content_of
from pycc.models.python2 import translated
from pycc.models.wrappers import Leaf
from pycc.registry import nearest
from pycc.runs import write_atomic

_FORMATS = {
    **dict.fromkeys((".h5", ".hdf5"), "h5"),
    ".npz": "npz",
    **dict.fromkeys((".pth", ".pt", ".tar", ".param", ".ckpt", ".model"), "torch"),
}
_METADATA = "metadata"
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
_CUT_OFF = re.compile(
    r"unexpected EOF|bytes in a \w+, but only|not enough data in stream|exhausted before|"
    r"Ran out of input|truncated"
)
"""Messages of the readers of pickles, torch and HDF5 at the end of an incomplete file."""
_PACKAGED = Path(__file__).parent / "pretrained"


def builtin() -> list[str]:
    """Return the names of the weights in the package; ``load`` accepts them like a path.

    >>> builtin()
    ['mcnn-synthetic']
    """
    return sorted(path.stem for path in _PACKAGED.glob("*.npz"))


def locate(weights: str | os.PathLike[str]) -> Path:
    """Return the file of built-in weights or, for any other name, the path itself."""
    if isinstance(weights, str) and weights in builtin():
        return _PACKAGED / f"{weights}.npz"
    return Path(weights)


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


def read_weights(path: Path, *, name: str | None = None) -> Stored:
    """Read the tensors of a weights file under their published keys, and its metadata.

    The format is known by the suffix: HDF5 (.h5, .hdf5; needs h5py), torch (.pth, .pt, .pth.tar,
    .param, .ckpt, .model; also of Python 2; or a TorchScript archive, whose code is not run), npz
    (this package's own). The state dict may be nested in a checkpoint to any depth and its keys may
    have prefixes: ``pycc.models.wrappers`` finds it, and ``pycc.models.families`` removes the
    prefixes that hide the keys of a family (of ``name`` first, if given). If only the keys under
    one prefix belong to a family, only these are taken. The weights metadata may also lie beside
    the file (``pycc.models.metadata.beside``).

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
    suffix = path.suffix.lower()
    content = content_of(path)
    if suffix not in _FORMATS:
        known = ", ".join(_FORMATS)
        what = f"; the file is {content.words}: {content.remedy}" if content else ""
        raise ValueError(f"weights: {path}: unknown format {suffix!r}; known: {known}{what}")
    if content is not None and content.format != _FORMATS[suffix]:
        wanted = {"h5": "an HDF5 file", "npz": "a readable npz", "torch": "a torch file"}
        raise ValueError(
            f"weights: {path} is not {wanted[_FORMATS[suffix]]} but {content.words}: "
            f"{content.remedy}"
        )
    metadata: dict[str, object] = {}
    leaves: list[Leaf]
    if _FORMATS[suffix] == "h5":
        leaves = [(tuple(str(key).split("/")), value) for key, value in _read_h5(path).items()]
    elif _FORMATS[suffix] == "npz":
        entries, metadata = _read_npz(path)
        leaves = [((key,), value) for key, value in entries.items()]
    else:
        leaves = wrappers.leaves(_read_torch(path), path)
    candidate = wrappers.find(leaves, path, name)
    state, prefixes = unprefixed(_clean(candidate.state, path), name)
    beside = metadata or described.read_beside(path)
    return Stored(state, beside, prefixes, candidate.path, candidate.left_out)


@contextmanager
def third_party(path: Path, problem: str) -> Iterator[None]:
    """Turn any exception of a reader into one ValueError that names the file; drop its warnings.

    If memory runs out, the exception is raised unchanged, since the file is not at fault.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # For a damaged file zipfile, the unpickler or HDF5 fail at any depth and with any type
    # (AssertionError, struct.error, NotImplementedError, KeyError, ...), none of them documented.
    except Exception as error:
        if lacks_memory(error):
            raise
        truncated = f"; {CUT_OFF}" if _CUT_OFF.search(str(error)) else ""
        raise ValueError(f"weights: {path} {problem}: {one_line(error)}{truncated}") from None


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
            state[key] = wrappers.tensor_of(np.asarray(file[key][()]))
    return state


def _read_npz(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    state: dict[str, object] = {}
    metadata: dict[str, object] = {}
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
    if not isinstance(metadata, dict):
        raise ValueError(f"weights: {path}: the metadata must be a JSON object")
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


def save(counter: CounterModel, path: str | Path, *, metadata: Mapping[str, object]) -> None:
    """Write a counter's weights and metadata as npz; the file appears complete or not at all.

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
    if target.suffix != ".npz":
        raise ValueError(f"weights: save writes .npz files, got {target}")
    if counter.name not in MODELS.names():
        raise ValueError(
            f"weights: {counter.name!r} is made of a user's network, which load could not build "
            "again; keep its state dict with torch.save"
        )
    other = {t.dtype for t in counter.net.state_dict().values() if t.is_floating_point()}
    if other != {torch.float32}:
        raise ValueError(f"weights: save writes float32 counters, got {sorted(map(str, other))}")
    full = described.weights_metadata(counter, metadata)
    arrays: dict[str, NDArray[np.generic]] = {
        key: np.asarray(tensor.detach().cpu().numpy(), order="C")
        for key, tensor in counter.net.state_dict().items()
    }
    arrays[_METADATA] = np.array(described.written(full))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomic(target, buffer.getvalue())


def _settings(counter: CounterModel) -> str:
    return "(" + ", ".join(f"{k}={v!r}" for k, v in counter.options().items()) + ")"


def shortened(keys: Iterable[str], shown: int = 3) -> str:
    """Format the first few keys, and the number of the others."""
    listed = list(keys)
    rest = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(" ".join(key.split())[:80] for key in listed[:shown]) + rest
