"""Initial weights of fresh networks, as published codes draw them."""

from __future__ import annotations

from torch import nn


def gaussian(net: nn.Module, *, linear: bool = False) -> None:
    """Draw the weights of all convolutions from N(0, 0.01), biases 0.

    With ``linear`` also the weights of all linear layers, whose biases stay.

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Linear(2, 2))
    >>> gaussian(net)
    >>> net[0].bias.tolist(), bool(net[0].weight.abs().max() < 0.1)
    ([0.0, 0.0], True)
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) or (linear and isinstance(module, nn.Linear)):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def he(net: nn.Module) -> None:
    """Draw the weights of all convolutions as torchvision does for VGG: He, fan-out; biases 0.

    >>> net = nn.Conv2d(3, 2, 1)
    >>> he(net)
    >>> net.bias.tolist()
    [0.0, 0.0]
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
