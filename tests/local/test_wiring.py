"""Random networks: what is computed layer by layer is what the whole image gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pycc.local import Box, Local

Draw = Callable[[st.SearchStrategy[Any]], Any]
Layer = Callable[[Tensor], Tensor]
CHANNELS = 4


def few(draw: Draw, low: int, high: int) -> int:
    number: int = draw(st.integers(low, high))
    return number


def pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return few(draw, low, high), few(draw, low, high)


def convolution(draw: Draw) -> Layer:
    kernel, dilation = pair(draw, 1, 4), pair(draw, 1, 2)
    padding = [few(draw, 0, d * (k - 1)) for d, k in zip(dilation, kernel, strict=True)]
    return nn.Conv2d(
        CHANNELS,
        CHANNELS,
        kernel,
        stride=[few(draw, 1, min(k, 2)) for k in kernel],
        padding=padding,
        dilation=dilation,
        groups=draw(st.sampled_from([1, 2, 4])),
        bias=draw(st.booleans()),
    )


def transposed(draw: Draw) -> Layer:
    kernel, dilation = pair(draw, 1, 4), pair(draw, 1, 2)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    stride = [few(draw, 1, min(r + 1, 2)) for r in reach]
    return nn.ConvTranspose2d(
        CHANNELS,
        CHANNELS,
        kernel,
        stride=stride,
        padding=[few(draw, 0, min(r, 2)) for r in reach],
        output_padding=[few(draw, 0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)],
        dilation=dilation,
        groups=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    )


def max_pooling(draw: Draw) -> Layer:
    kernel = pair(draw, 2, 3)
    return nn.MaxPool2d(
        kernel,
        stride=pair(draw, 1, 2),
        padding=[few(draw, 0, k // 2) for k in kernel],
        dilation=pair(draw, 1, 2),
        ceil_mode=draw(st.booleans()),
    )


def average_pooling(draw: Draw) -> Layer:
    kernel = pair(draw, 2, 3)
    padding = [few(draw, 0, k // 2) for k in kernel]
    divisor = draw(st.sampled_from([None, 3]))
    return nn.AvgPool2d(kernel, pair(draw, 1, 2), padding, divisor_override=divisor)


def normalisation(draw: Draw) -> Layer:
    layer = nn.BatchNorm2d(CHANNELS, affine=draw(st.booleans()))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer


def activation(draw: Draw) -> Layer:
    kinds: list[Callable[[], Layer]] = [
        nn.ReLU,
        lambda: lambda x: functional.relu_(x + 0.1),
        lambda: nn.PReLU(CHANNELS),
        nn.PReLU,
        nn.Sigmoid,
        nn.Softplus,
        lambda: nn.LeakyReLU(0.2),
        nn.GELU,
        nn.SiLU,
        nn.ELU,
        nn.Tanh,
        nn.Hardtanh,
        lambda: nn.Softmax(1),
    ]
    layer: Layer = draw(st.sampled_from(kinds))()
    return layer


def upsampling(draw: Draw) -> Layer:
    mode = draw(st.sampled_from(["nearest", "nearest-exact"]))
    return nn.Upsample(scale_factor=2, mode=mode)


def bilinear(draw: Draw) -> Layer:
    """By any factor, or to any size, with corners aligned or not."""
    aligned = draw(st.booleans())
    if draw(st.booleans()):
        return nn.Upsample(pair(draw, 17, 60), mode="bilinear", align_corners=aligned)
    factor = draw(st.sampled_from([0.7, 2.0, 3.0]))
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=aligned)


def cut(draw: Draw) -> Layer:
    top, left = pair(draw, 0, 3)
    bottom, right = pair(draw, 1, 3)
    return lambda x: x[..., top:-bottom, left:-right]


def padding(draw: Draw) -> Layer:
    margins = (few(draw, 0, 3), few(draw, 0, 3), few(draw, 0, 3), few(draw, 0, 3))
    return nn.ConstantPad2d(margins, draw(st.sampled_from([0.0, -0.7])))


def halves(draw: Draw) -> Layer:
    inner = nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 3, padding=1, dtype=torch.float64)
    split = draw(st.sampled_from([lambda x: x.chunk(2, 1), lambda x: (x[:, ::2], x[:, 1:3])]))

    def layer(x: Tensor) -> Tensor:
        single, other = split(x)
        return torch.cat([inner(other), single.relu()], -3)

    return layer


def residual(draw: Draw) -> Layer:
    inner = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, dtype=torch.float64)
    return lambda x: functional.relu_(inner(x).mul_(0.5).add_(x))


def branches(draw: Draw) -> Layer:
    convolutions = [
        nn.Conv2d(CHANNELS, n, k, padding=k // 2, dtype=torch.float64)
        for n, k in ((2, 1), (1, 3), (1, 5))
    ]
    return lambda x: torch.cat([inner(x) for inner in convolutions], 1)


def constant_map(draw: Draw) -> Layer:
    def layer(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows = torch.linspace(0.5, 1.5, height, dtype=x.dtype)[:, None]
        return x * rows + rows.view(1, 1, height, 1) * torch.linspace(0, 1, width, dtype=x.dtype)

    return layer


def attention(draw: Draw) -> Layer:
    """One channel weighs all others."""
    return lambda x: x.mean(1, keepdim=True).expand(-1, CHANNELS, -1, -1).sigmoid() * x


def context(draw: Draw) -> Layer:
    """Means over parts of the image, joined with the features by a convolution."""
    side = few(draw, 1, 3)
    join = nn.Conv2d(2 * CHANNELS, CHANNELS, few(draw, 1, 3), stride=few(draw, 1, 3))
    join.double()

    def layer(x: Tensor) -> Tensor:
        means = functional.adaptive_avg_pool2d(x, side)
        spread = functional.interpolate(means, size=x.shape[-2:], mode="bilinear")
        return join(torch.cat([x, spread * x.sigmoid()], 1))

    return layer


def quarters(draw: Draw) -> Layer:
    """Parts of the image that know nothing of each other."""
    inner = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, dtype=torch.float64)
    top, left = pair(draw, 2, 5)

    def layer(x: Tensor) -> Tensor:
        rows = [
            torch.cat([inner(part[..., :left]).chunk(1, 1)[0], inner(part[..., left:])], 3)
            for part in (x[..., :top, :], x[..., top:, :])
        ]
        return torch.cat(rows, 2)

    return layer


def words(draw: Draw) -> Layer:
    """Attention among all places, by reshaping that also moves the batch axis."""

    def layer(x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)
        share = torch.softmax(torch.einsum("pnc,qnc->npq", tokens, tokens), -1)
        return x + torch.einsum("npq,qnc->ncp", share, tokens).reshape(x.shape)

    return layer


def arithmetic(draw: Draw) -> Layer:
    formulas: list[Layer] = [
        lambda x: 1.0 - x,
        lambda x: x.abs() ** 1.5,
        lambda x: 2.0 ** x.clamp(-2, 2),
        lambda x: x.clamp(min=-0.3),
        lambda x: torch.maximum(x, 0.1 - x),
        lambda x: x / (1 + x.square()),
        lambda x: (x.unsqueeze(2) * torch.ones(2, 1, 1).to(x)).sum(2),
        lambda x: torch.stack([x, 2 * x], 2).amax(2),
        lambda x: (x.exp() + 1).log(),
        lambda x: torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, x.tanh()),
        lambda x: x[:, :1].repeat(1, CHANNELS, 1, 1) - x,
        lambda x: x.narrow(1, 0, 1).squeeze(1).unsqueeze(1) + x,
        lambda x: torch.lerp(x, x.relu(), 0.3),
    ]
    formula: Layer = draw(st.sampled_from(formulas))
    return formula


KINDS: dict[str, Callable[[Draw], Layer]] = {
    kind.__name__: kind
    for kind in (
        *(convolution, transposed, max_pooling, average_pooling, normalisation, activation),
        *(upsampling, bilinear, cut, padding, halves, residual, branches, constant_map),
        *(attention, arithmetic, context, quarters, words),
    )
}


WHOLE = {"context", "quarters", "words"}
"""Kinds with a layer that is computed whole."""


def grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1) * 255.0 / 128


def standardised(images: Tensor) -> Tensor:
    mean = images.new_tensor([0.41, 0.37, 0.36]).view(3, 1, 1)
    return (images - mean) / images.new_tensor([0.28, 0.27, 0.27]).view(3, 1, 1)


class Network(nn.Module):
    """Preparation, a first convolution, layers of ``CHANNELS`` channels, and the map."""

    stride = 1
    receptive_field = None

    def __init__(self, draw: Draw, layers: list[str]) -> None:
        super().__init__()
        torch.manual_seed(few(draw, 0, 1000))
        self.prepare, inputs = draw(st.sampled_from([(grey, 1), (standardised, 3)]))
        self.first = nn.Conv2d(inputs, CHANNELS, 1)
        self.last = nn.Conv2d(CHANNELS, 1, 1)
        self.layers = [KINDS[kind](draw) for kind in layers]
        self.modules_of_layers = nn.ModuleList(x for x in self.layers if isinstance(x, nn.Module))
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.prepare(images))
        for layer in self.layers:
            x = layer(x)
        density: Tensor = self.last(x)
        return density


def axis(draw: Draw, size: int) -> tuple[int, int]:
    """Where a box begins and ends: in the middle, at either border, or all."""
    side = few(draw, 1, min(size, 9))
    start = draw(st.sampled_from([0, size - side, (size - side) // 2, (size - side) // 3]))
    return start, start + side


def apart(got: Tensor, wanted: Tensor, scale: Tensor) -> float:
    """The largest difference, as a share of the largest value of ``scale``."""
    assert got.shape == wanted.shape
    if not got.numel():
        return 0.0
    difference = (got - wanted).detach().abs().max()
    return float(difference / scale.detach().abs().max().clamp(min=1e-300))


def check(draw: Draw, kinds: list[str]) -> None:
    network = Network(draw, kinds)
    shape = few(draw, 17, 26), few(draw, 17, 26)
    (top, bottom), (left, right) = axis(draw, shape[0]), axis(draw, shape[1])
    box = Box(top, left, bottom, right)
    rows, draws = few(draw, 1, 2), few(draw, 1, 2)
    images = torch.rand(rows, 3, *shape, dtype=torch.float64)
    pixels = torch.rand(rows * draws, 3, *box.shape, dtype=torch.float64, requires_grad=True)
    attacked = images.repeat_interleave(draws, 0)
    attacked[..., *box.slices] = pixels
    try:
        before = network(images.repeat_interleave(draws, 0)).detach()
    except RuntimeError:  # too small for all these layers
        reject()
    after = network(attacked)

    local = Local(network, images, box)
    # Layers may leave out rows: then nothing changes, and the counter is evaluated whole.
    assert local.whole_layers is not None or torch.equal(after.detach(), before)
    assert local.follows_layers or not {*kinds}.isdisjoint(WHOLE) or local.whole_layers is None
    cells = local.cells.slices
    assert apart(local.clean, before[::draws, :, *cells], before) <= 1e-12
    result = local(pixels)
    assert apart(result, after[..., *cells], after) <= 1e-12
    rest = after.detach() - before
    rest[..., *cells] = 0
    assert not rest.any()

    weights = torch.rand_like(after)
    (wanted,) = torch.autograd.grad((weights * after).sum(), pixels)
    (slope,) = torch.autograd.grad((weights[..., *cells] * result).sum(), pixels)
    assert apart(slope, wanted, wanted) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_layer_among_convolutions(kind: str, data: st.DataObject) -> None:
    check(data.draw, ["convolution", kind, "convolution"])


@pytest.mark.long
@settings(max_examples=60)
@given(data=st.data())
def test_random_networks(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5))
    enlarging = ("upsampling", "bilinear", "transposed")
    few_enlarged = sum(kinds.count(kind) for kind in enlarging) <= 2
    check(data.draw, kinds if few_enlarged else kinds[:2])
