"""Counters as graphs: torch.compile, torch.export, ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from support import narrow
from torch import Tensor, nn

from pycc import models, ops
from pycc.models.base import CounterModel

FAMILIES: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in models.names()),
    ("csrnet", {"variant": "commissarma"}),
    ("can", {"variant": "weizheliu"}),
    ("mask_aware", {"variant": "solution4"}),
    ("clip_ebc", {"backbone": "vgg19"}),
    ("clip_ebc", {"backbone": "vit_b_16"}),
    ("vgg19", {"variant": "dm_count"}),
    ("zip", {"variant": "t", "block": 8}),
    ("sfanet", {"variant": "m_sfanet"}),
    ("sfanet", {"variant": "m_sfanet_qnrf"}),
]
NATIVE = [family for family in FAMILIES if not family[1] and family[0] != "steerer"]
"""One network of each kind of layers: native code takes minutes. STEERER has FIDTM's trunk."""
SHAPE = (48, 64)


class Counting(nn.Module):
    """A counter as the exporter wants it: a module of one call."""

    def __init__(self, counter: CounterModel) -> None:
        super().__init__()
        self.counter = counter

    def forward(self, images: Tensor) -> Tensor:
        return self.counter(images)


def _name(family: tuple[str, dict[str, object]]) -> str:
    return "-".join(map(str, [family[0], *family[1].values()]))


@pytest.fixture(params=FAMILIES, ids=_name)
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CounterModel:
    narrow.narrow(monkeypatch)
    torch.manual_seed(0)  # some weights shut nearly all ReLUs: what is left is rounding
    name, options = request.param
    return narrow.create(name, **options)


def images() -> Tensor:
    return torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(5))


def alike(result: Tensor, expected: Tensor) -> bool:
    return bool((result - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.long
@torch.no_grad()
def test_export(counter: CounterModel) -> None:
    program = torch.export.export(Counting(counter), (images(),))
    assert alike(program.module()(images()), counter(images()))


@pytest.mark.long
def test_compile_without_breaks(counter: CounterModel) -> None:
    """The whole counter is one graph, forward and backward."""
    torch._dynamo.reset()
    compiled = torch.compile(counter, fullgraph=True, backend="aot_eager")
    gradients = []
    for call in (compiled, counter):
        fed = images().requires_grad_()
        call(fed).square().sum().backward()
        gradients.append(fed.grad)
    assert alike(compiled(images()), counter(images()))
    assert alike(*gradients)


@pytest.mark.long
@pytest.mark.parametrize("counter", NATIVE, ids=_name, indirect=True)
def test_compile_to_native_code(counter: CounterModel) -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own remarks
        compiled = torch.compile(counter)
        assert alike(compiled(images()), counter(images()))


@pytest.mark.long
def test_onnx(counter: CounterModel, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    assert models.export_onnx(counter, path, shape=SHAPE) <= 1e-4
    loaded = models.black_box(path, stride=counter.stride)
    with torch.no_grad(), ops.reference():
        assert alike(loaded(images()), counter(images()))
