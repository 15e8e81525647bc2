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
    """VGG-16's first ten convolutions, each with its ReLU, under torchvision's indices.

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
    """Channels that a front end returns."""
    last = front[-2]
    assert isinstance(last, nn.Conv2d)
    return last.out_channels


def backend(channels: int, *, norm: bool = False) -> nn.Sequential:
    """CSRNet's back end: six 3x3 convolutions of dilation 2, each with its ReLU.

    x [N,channels,h,w] -> [N,64,h,w]. ``norm`` puts a batch normalisation before each ReLU.
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
    """Every convolution's weights N(0, 0.01), biases 0, as these networks are published."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def adopt_vgg(front: nn.Sequential, state: Mapping[str, Tensor]) -> str | None:
    """Copy the first ten convolutions of torchvision's VGG-16 into a front end.

    ``state`` holds ``features.N.weight`` and ``.bias`` (with or without the classifier). Returns
    what was taken, or None if it is no VGG-16. ValueError if a tensor has another shape (VGG-16
    with batch normalisation has, since its indices run on).
    """
    there = {key: value for key, value in state.items() if key.startswith("features.")}
    if not there or any(_FEATURE.fullmatch(key) is None for key in there):
        return None
    wanted = front.state_dict()
    for key, tensor in wanted.items():
        found = there.get(f"features.{key}")
        if found is None or found.shape != tensor.shape or not found.is_floating_point():
            got = "nothing" if found is None else f"{list(found.shape)} of {found.dtype}"
            raise ValueError(
                f"vgg16: features.{key} must be floats {list(tensor.shape)}, got {got}; the front "
                "end is that of VGG-16 without batch normalisation"
            )
    front.load_state_dict({key: there[f"features.{key}"] for key in wanted})
    return f"the first {len(wanted) // 2} convolutions of VGG-16 ({len(there)} of its tensors read)"


def sum_of_squares(density: Tensor, target: Tensor) -> Tensor:
    """The sum over an image's cells of the squared error, the mean over images: CSRNet's, CAN's."""
    return torch.square(density - target).sum((1, 2, 3)).mean()
