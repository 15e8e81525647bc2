"""Public checkpoints whose convention their keys do not tell, recognised by their content.

Loaded by the keys alone, weights converted from another framework count silently wrong. So each
entry states the options that a checkpoint was trained with and the count that it then gives on the
probe image, like the passport of this package's own files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PROBE_TOLERANCE = 1e-3
"""Relative; looser than for this package's own weights, for the sake of other versions of torch."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of one public checkpoint."""

    source: str
    digest: str
    """``digest`` of its tensors."""
    probe_count: float
    """People on the probe image, float32 on a CPU."""
    input: str
    final_relu: bool
    data: str
    mae: float
    """Of ``data``'s test images, as they are or with sides resized to multiples of 4."""
    rmse: float

    def passport(self) -> dict[str, object]:
        """The passport that the file itself lacks."""
        options = {
            "variant": "gray",
            "input": self.input,
            "final_relu": self.final_relu,
            "scale": 1.0,
        }
        return {
            "model": "mcnn",
            "options": options,
            "stride": 4,
            "probe_count": self.probe_count,
            "source": self.source,
            "data": self.data,
            "mae": self.mae,
            "rmse": self.rmse,
        }


CHECKPOINTS = (
    Checkpoint(
        "mcnn_shtechA_660.h5, svishwa/crowdcount-mcnn, ShanghaiTech A",
        "f45dd14d99e8fe11872c5d0ac13970c78afd443e4042a135d436ad8136de401b",
        36.92311,
        "gray255",
        True,
        "ShanghaiTech A",
        110.2,
        167.3,
    ),
    Checkpoint(
        "mcnn_shtechB_110.h5, svishwa/crowdcount-mcnn, ShanghaiTech B",
        "7992b2afb6245664752639fe9010c59bc0a592554924241cef50a7d5dc32cc4b",
        19.84500,
        "gray255",
        True,
        "ShanghaiTech B",
        25.2,
        43.8,
    ),
    Checkpoint(
        "mcnn_tf_uestc_A.pth, converted from a TensorFlow training, ShanghaiTech A",
        "3698e3ac5e736ee85748dc3b622bcc6d574afda53d5adb51ddda8029df233f4c",
        13.86712,
        "gray_half",
        False,
        "ShanghaiTech A",
        120.92,
        193.35,
    ),
    Checkpoint(
        "mcnn_tf_uestc_B.pth, converted from a TensorFlow training, ShanghaiTech B",
        "ea2d32044aebbb0aa267a6af60de7b838c5f85083f5449a54964711b4eac507b",
        14.34869,
        "gray_half",
        False,
        "ShanghaiTech B",
        32.32,
        55.51,
    ),
    Checkpoint(
        "mcnn_embrace_A.pth, converted from a Keras training, ShanghaiTech A",
        "d78946132f4ee35f6029ef2e6ede63e0555dcec80d32f60628915b4073b17c60",
        23.15328,
        "gray255",
        False,
        "ShanghaiTech A",
        148.8,
        217.39,
    ),
)


def digest(state: Mapping[str, Tensor]) -> str | None:
    """SHA-256 over the keys in order, each with its shape and float32 values (little-endian).

    Independent of the file's format; None where not all tensors are float32.
    """
    if any(tensor.dtype != torch.float32 for tensor in state.values()):
        return None
    hashed = hashlib.sha256()
    for key in sorted(state):
        values = state[key].detach().contiguous().numpy()
        hashed.update(f"{key} {list(values.shape)}\n".encode("utf-8", "surrogatepass"))
        hashed.update(values.astype("<f4", copy=False).tobytes())
    return hashed.hexdigest()


def passport_of(state: Mapping[str, Tensor]) -> dict[str, object] | None:
    """The passport of a public checkpoint with this content, or None."""
    found = digest(state)
    return next((entry.passport() for entry in CHECKPOINTS if entry.digest == found), None)
