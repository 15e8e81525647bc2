"""Reading, checking and writing weights in the published formats and in this package's own.

Nothing here runs code from a weights file: HDF5 and npz hold arrays only, and pickles are read by
torch's restricted unpickler.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.models.base import CounterModel

_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".param", ".ckpt", ".model")
_H5_SUFFIXES = (".h5", ".hdf5")
_PREFIXES = ("module.", "DME.", "CCN.", "fine.")
_NESTED = ("state_dict", "net", "model_state_dict")
_PASSPORT = "passport"
_PACKAGED = Path(__file__).parent / "pretrained"
_PROBE_TOLERANCE = 1e-4


def builtin() -> list[str]:
    """Names of the weights that come with the package; ``load`` takes them like a path."""
    return sorted(path.stem for path in _PACKAGED.glob("*.npz"))


def locate(weights: str | os.PathLike[str]) -> Path:
    """The file of built-in weights or, for any other name, the path itself."""
    if isinstance(weights, str) and weights in builtin():
        return _PACKAGED / f"{weights}.npz"
    return Path(weights)


def probe_image() -> Tensor:
    """A fixed picture [1,3,96,128] in [0,1] by a formula, on which passports state the count.

    Light ground with waves, and rows of dark discs that grow towards the lower edge: enough like
    heads for a counter to answer with something other than nothing.
    """
    y, x = np.mgrid[0:96, 0:128].astype(np.float64)
    ground = 0.65 + 0.1 * np.sin(x / 9.0) * np.cos(y / 7.0) + 0.1 * (y / 96.0)
    picture = np.stack([ground, 0.95 * ground, 0.85 * ground])
    for row in range(5):
        radius = 2.5 + row
        centre_y = 10.0 + 4.0 * row * (row + 1)
        for centre_x in np.arange(4.0 + 3.0 * row, 128.0, 5.0 * radius):
            inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2
            picture[:, inside] = np.array([[0.25], [0.2], [0.15]])
    return torch.from_numpy(picture.astype(np.float32)).unsqueeze(0)


def probe_count(counter: CounterModel) -> float:
    """The count of ``probe_image`` by a counter, in eval mode and without gradients."""
    mode, device = counter.training, next(counter.parameters()).device
    counter.eval()
    with torch.no_grad():
        count = float(counter(probe_image().to(device)).sum())
    counter.train(mode)
    return count


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The float tensors of a weights file under their published keys, and its passport or {}.

    Known formats by suffix: HDF5 (.h5, .hdf5; needs h5py), torch (.pth, .pt, .pth.tar, .param,
    .ckpt, .model; a bare state dict or one under ``state_dict``, ``net`` or
    ``model_state_dict``), npz (this package's own). Prefixes of training wrappers (``module.``,
    ``DME.``, ``CCN.``, ``fine.``) are removed. Raises FileNotFoundError for a missing file and
    ValueError, naming the file, for one that cannot be read, asks to run code, or holds something
    other than finite arrays.
    """
    if not path.exists():
        known = ", ".join(builtin())
        raise FileNotFoundError(f"weights: no such file: {path} (built-in weights: {known})")
    if not path.is_file():
        raise ValueError(f"weights: {path} is not a file")
    suffix = path.suffix.lower()
    passport: dict[str, object] = {}
    entries: Mapping[str, object]
    if suffix in _H5_SUFFIXES:
        entries = _read_h5(path)
    elif suffix == ".npz":
        entries, passport = _read_npz(path)
    elif suffix in _TORCH_SUFFIXES:
        entries = _read_torch(path)
    else:
        known = ", ".join((*_H5_SUFFIXES, ".npz", *_TORCH_SUFFIXES))
        raise ValueError(f"weights: {path}: unknown format {suffix!r}; known: {known}")
    return _clean(entries, path), passport


def _clean(entries: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in entries.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"weights: {path}: entry {str(key)[:60]!r} must be a tensor, "
                f"got {type(value).__name__}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"weights: {path}: entry {key!r} holds NaN or infinity")
        state[str(key)] = value
    if not state:
        raise ValueError(f"weights: {path} holds no tensors")
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
                stripped = True
    return state


def _read_h5(path: Path) -> dict[str, Tensor]:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"weights: reading {path} needs h5py: pip install 'pycc[h5]'") from None
    if not h5py.is_hdf5(path):
        raise ValueError(f"weights: {path} is not an HDF5 file")
    state: dict[str, Tensor] = {}
    try:
        with h5py.File(path, "r") as file:
            datasets: list[str] = []
            file.visititems(
                lambda key, item: datasets.append(key) if isinstance(item, h5py.Dataset) else None
            )
            for key in datasets:
                state[key] = torch.from_numpy(np.ascontiguousarray(file[key][()]))
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"weights: {path} cannot be read: {_one_line(error)}") from None
    return state


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    state: dict[str, Tensor] = {}
    passport: dict[str, object] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                if key == _PASSPORT:
                    passport = json.loads(str(arrays[key]))
                else:
                    state[key] = torch.from_numpy(arrays[key])
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"weights: {path} is not a readable npz: {_one_line(error)}") from None
    if not isinstance(passport, dict):
        raise ValueError(f"weights: {path}: the passport must be a JSON object")
    return state, passport


def _read_torch(path: Path) -> Mapping[str, object]:
    try:
        with warnings.catch_warnings():
            # About pickle protocols that the restricted unpickler then refuses anyway.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off; it is not passed on.
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80"
        if pickled or "GLOBAL" in str(error):
            raise ValueError(
                f"weights: {path} is refused: its pickle asks for more than tensors, "
                "which could run code"
            ) from None
        raise ValueError(f"weights: {path} is not a torch file") from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"weights: {path} cannot be read: {_one_line(error)}") from None
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"weights: {path} must hold a state dict, got {type(content).__name__}")
    return content


def fit(counter: CounterModel, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``counter.net``; ValueError lists every kind of mismatch on one line."""
    expected = counter.net.state_dict()
    problems = []
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} {list(state[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong)):
        if keys:
            problems.append(f"{what} {_shortened(keys)}")
    if problems:
        raise ValueError(
            f"weights: {source} does not fit {counter.name} {_settings(counter)}: "
            + "; ".join(problems)
        )
    counter.net.load_state_dict(dict(state))


def check_passport(counter: CounterModel, passport: Mapping[str, object], source: str) -> None:
    """ValueError unless the counter gives the count that its passport states for the probe."""
    expected = passport.get("probe_count")
    if expected is None:
        return
    if not isinstance(expected, int | float):
        raise ValueError(f"weights: {source}: probe_count must be a number, got {expected!r}")
    count = probe_count(counter)
    if not abs(count - expected) <= _PROBE_TOLERANCE * max(1.0, abs(expected)):
        raise ValueError(
            f"weights: {source}: the passport promises a count of {expected:.6g} on the probe "
            f"image, got {count:.6g}; the weights or their input convention are not the stated ones"
        )


def save(counter: CounterModel, path: str | Path, *, passport: Mapping[str, object]) -> None:
    """Write a counter's weights and passport as npz, whole or not at all.

    The passport is JSON; ``model``, ``options`` and ``probe_count`` are added to what is given
    (recipe, training time, data, errors on test scenes, …). Raises ValueError for a passport that
    is not JSON, OSError where the file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"weights: save writes .npz files, got {target}")
    full = {"model": counter.name, "options": counter.options(), **passport}
    full["probe_count"] = probe_count(counter)
    arrays: dict[str, NDArray[np.generic]] = {
        key: np.ascontiguousarray(tensor.detach().cpu().numpy())
        for key, tensor in counter.net.state_dict().items()
    }
    try:
        arrays[_PASSPORT] = np.array(json.dumps(full, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights: the passport must be JSON: {_one_line(error)}") from None
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _settings(counter: CounterModel) -> str:
    return "(" + ", ".join(f"{k}={v!r}" for k, v in counter.options().items()) + ")"


def _shortened(keys: Iterable[str], shown: int = 3) -> str:
    listed = list(keys)
    rest = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(key[:80] for key in listed[:shown]) + rest


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] if text else type(error).__name__
