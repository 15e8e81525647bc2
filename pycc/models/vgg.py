"""The convolutions of VGG-16 and VGG-19 that several counters share, and CSRNet's back end.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015; VGG-16's first ten convolutions as Li et al., "CSRNet", CVPR 2018, use them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pycc.models.backbone import take

FRONTEND: tuple[int | None, ...] = (
    64,
    64,
    None,
    128,
    128,
    None,
    256,
    256,
    256,
    None,
    512,
    512,
    512,
)
"""Channels of VGG-16's first ten convolutions; None is a 2x2 max pooling."""
TRUNK_19: tuple[int | None, ...] = (
    *(64, 64, None),
    *(128, 128, None),
    *(256, 256, 256, 256, None),
    *(512, 512, 512, 512, None),
    *(512, 512, 512, 512),
)
"""Channels of VGG-19's sixteen convolutions, without its fifth pooling; None as above."""
BACKEND: tuple[int, ...] = (512, 512, 512, 256, 128, 64)
"""Channels of CSRNet's six dilated convolutions."""
STRIDE = 8
FIELD = 92
"""Receptive field: 3, 5; pooling 6, +4·2 = 14; 16, +6·4 = 40; 44, +6·8 = 92 pixels."""

_FEATURE = re.compile(r"features\.\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)")


def frontend() -> nn.Sequential:
    """Make VGG-16's first ten convolutions, each with its ReLU, under torchvision's indices.

    x [N,3,H,W] -> [N,512,H//8,W//8] (each pooling rounds down); 7,635,264 parameters.
    """
    return _convolutions(FRONTEND)


def trunk_19() -> nn.Sequential:
    """Make VGG-19 without its fifth pooling, each convolution with its ReLU, indices as above.

    x [N,3,H,W] -> [N,512,H//16,W//16] (each pooling rounds down); 20,024,384 parameters.
    """
    return _convolutions(TRUNK_19)


def _convolutions(plan: Sequence[int | None]) -> nn.Sequential:
    """Make 3x3 convolutions, each with its ReLU, and poolings, under torchvision's indices."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs in plan:
        if outputs is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            channels = outputs
    return nn.Sequential(*layers)


def channels(front: nn.Sequential) -> int:
    """Return the number of output channels of a front end."""
    last = front[-2]
    assert isinstance(last, nn.Conv2d)
    return last.out_channels


def backend(channels: int, *, norm: bool = False) -> nn.Sequential:
    """Make CSRNet's back end: six 3x3 convolutions of dilation 2, each with its ReLU.

    x [N,channels,h,w] -> [N,64,h,w]. ``norm`` adds a batch normalisation before each ReLU.
    """
    layers: list[nn.Module] = []
    for outputs in BACKEND:
        layers.append(nn.Conv2d(channels, outputs, 3, padding=2, dilation=2))
        if norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
        channels = outputs
    return nn.Sequential(*layers)


def adopt_vgg(
    front: nn.Sequential, state: Mapping[str, Tensor], *, network: str = "VGG-16"
) -> str | None:
    """Copy the first convolutions of torchvision's VGG-16 (or ``network``) into a front end.

    ``state`` holds ``features.N.weight`` and ``.bias``, and statistics if the front end has batch
    normalisation (with or without the classifier). Returns a description of what was copied, or
    None if it is not a VGG. ValueError if a tensor has another shape (networks with batch
    normalisation have other indices than those without).
    """
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    if not features or any(_FEATURE.fullmatch(key) is None for key in features):
        return None
    wanted = front.state_dict()
    norms = "with" if any(key.endswith("running_mean") for key in wanted) else "without"
    trunk = f"the front end is that of {network} {norms} batch normalisation"
    take("vgg", front, features, {key: f"features.{key}" for key in wanted}, trunk=trunk)
    convolutions = sum(tensor.ndim == 4 for tensor in wanted.values())
    return (
        f"the first {convolutions} convolutions of {network} ({len(features)} of its tensors read)"
    )


def sum_of_squares(density: Tensor, target: Tensor) -> Tensor:
    """Compute the mean over images of the sum over cells of the squared error: CSRNet's, CAN's."""
    return torch.square(density - target).sum((1, 2, 3)).mean()
