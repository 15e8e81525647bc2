"""Every counter with few channels: the same wiring, computed in no time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pycc import models
from pycc.models import (
    clip_ebc,
    danet,
    families,
    fidtm_net,
    hrnet,
    mask_aware_net,
    mobilenet_v4,
    p2pnet_net,
    sfanet_net,
    steerer_net,
    vgg,
    vgg19,
    zip_net,
)
from pycc.models.base import CounterModel
from pycc.models.clip_ebc_net import CLIPEBCNet, ViTEBCNet

OPTIONS: dict[str, dict[str, object]] = {
    "mask_aware": {"width": 2, "mask_features": [2, 3, 4]},
    "p2pnet": {"cells": "scores"},  # whole numbers have no derivative
    "fidtm": {"cells": "scores"},
}


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, counters are created with few channels."""
    monkeypatch.setattr(vgg, "FRONTEND", (4, 4, None, 4, 4, None, 4, 4, 4, None, 6, 6, 6))
    monkeypatch.setattr(vgg, "BACKEND", (5, 5, 5, 4, 4, 4))
    narrowed = tuple(None if c is None else max(4, c // 64) for c in vgg.TRUNK_19)
    monkeypatch.setattr(vgg, "TRUNK_19", narrowed)
    monkeypatch.setattr(vgg19, "HEAD", (5, 4))
    blocks = {block: tuple(max(1, c // 64) for c in row) for block, row in danet.BLOCKS.items()}
    monkeypatch.setattr(danet, "BLOCKS", blocks)
    monkeypatch.setattr(mask_aware_net, "PATH", 2)
    monkeypatch.setattr(mask_aware_net, "FEATURES", 8)
    monkeypatch.setattr(mask_aware_net, "STEM", (4, 4))
    monkeypatch.setattr(sfanet_net, "WIDTHS", (4, 4, 6, 6, 6))
    monkeypatch.setattr(sfanet_net, "DECODER", (6, 5, 5, 4))
    monkeypatch.setattr(sfanet_net, "POOLED", 4)
    monkeypatch.setattr(sfanet_net, "REGRESSION", (4, 3))
    bodies = tuple(tuple(n and n // 16 for n in body) for body in p2pnet_net.BODIES)
    monkeypatch.setattr(p2pnet_net, "BODIES", bodies)
    monkeypatch.setattr(p2pnet_net, "FEATURES", 8)
    monkeypatch.setattr(hrnet, "WIDTHS", (4, 5, 6, 7))
    monkeypatch.setattr(hrnet, "STEM", 4)
    monkeypatch.setattr(hrnet, "BLOCKS", 1)
    monkeypatch.setattr(hrnet, "MODULES", (1, 2, 1))
    monkeypatch.setattr(fidtm_net, "HIDDEN", 4)
    monkeypatch.setattr(steerer_net, "HEAD", (5, 4, 3))
    plans = {
        size: tuple(
            tuple(replace(b, channels=max(2, b.channels // 32), hidden=b.hidden // 24) for b in row)
            for row in plan
        )
        for size, plan in mobilenet_v4.PLANS.items()
    }
    monkeypatch.setattr(mobilenet_v4, "PLANS", plans)
    monkeypatch.setattr(mobilenet_v4, "STEM", 3)
    monkeypatch.setattr(zip_net, "DECODER", {"p": (5,), "n": (6, 5), "t": (6, 5)})
    monkeypatch.setattr(families, "skeletons", {})  # those of other widths are kept
    sizes = {"width": 8, "embedding": 16, "text_width": 64, "text_layers": 1}
    monkeypatch.setattr(clip_ebc, "CLIPEBCNet", partial(CLIPEBCNet, **sizes))
    sizes |= {"layers": 2, "heads": 2}
    monkeypatch.setattr(clip_ebc, "ViTEBCNet", partial(ViTEBCNet, **sizes))


def create(name: str, **options: object) -> CounterModel:
    """A counter as ``narrow`` makes them, of fixed random weights that let something through."""
    counter = models.create(name, **{**OPTIONS.get(name, {}), **options})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in counter.net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * (2.0 / parameter[0].numel()) ** 0.5)
            elif parameter.ndim == 1 and len(parameter) > 1:
                parameter.copy_(0.5 + 0.1 * noise)
    return counter.eval()


def positive(counter: CounterModel) -> CounterModel:
    """The same counter with weights under which no ReLU shuts."""
    for parameter in counter.net.parameters():
        if parameter.ndim > 0:
            nn.init.uniform_(parameter, 0.0, 2.0 / parameter[0].numel())
    return counter
