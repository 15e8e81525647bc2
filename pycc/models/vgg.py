"""The front end of VGG-16 that several counters share, and CSRNet's back end.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015; its first ten convolutions as Li et al., "CSRNet", CVPR 2018, use them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
    layers: list[nn.Module] = []
    channels = 3
    for outputs in FRONTEND:
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


def initialise(net: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 0.01), biases 0, as published."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def adopt_vgg(front: nn.Sequential, state: Mapping[str, Tensor]) -> str | None:
    """Copy the first ten convolutions of torchvision's VGG-16 into a front end.

    ``state`` holds ``features.N.weight`` and ``.bias`` (with or without the classifier). Returns a
    description of what was copied, or None if it is not VGG-16. ValueError if a tensor has another
    shape (as in VGG-16 with batch normalisation, whose indices differ).
    """
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    if not features or any(_FEATURE.fullmatch(key) is None for key in features):
        return None
    wanted = front.state_dict()
    for key, tensor in wanted.items():
        given = features.get(f"features.{key}")
        if given is None or given.shape != tensor.shape or not given.is_floating_point():
            got = "nothing" if given is None else f"{list(given.shape)} of {given.dtype}"
            raise ValueError(
                f"vgg16: features.{key} must be floats {list(tensor.shape)}, got {got}; the front "
                "end is that of VGG-16 without batch normalisation"
            )
    front.load_state_dict({key: features[f"features.{key}"] for key in wanted})
    return (
        f"the first {len(wanted) // 2} convolutions of VGG-16 ({len(features)} of its tensors read)"
    )


def sum_of_squares(density: Tensor, target: Tensor) -> Tensor:
    """Compute the mean over images of the sum over cells of the squared error: CSRNet's, CAN's."""
    return torch.square(density - target).sum((1, 2, 3)).mean()
