"""The map of one box of the image is the whole image's, for every counter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc import models
from pycc.local import Box, Local, TracedGraph, aligned, influence
from pycc.types import Counter

SHAPE = (161, 203)
BOXES = {
    "middle": Box(60, 77, 80, 97),
    "top left corner": Box(0, 0, 9, 14),
    "bottom right corner, odd": Box(150, 190, 161, 203),
    "left border": Box(71, 0, 92, 3),
    "lower border": Box(153, 91, 161, 112),
    "one pixel": Box(101, 33, 102, 34),
    "everything": Box(0, 0, *SHAPE),
}


def image(shape: tuple[int, int] = SHAPE, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(rows, 3, *shape, generator=generator, dtype=torch.float64)


def attacked(images: Tensor, box: Box, pixels: Tensor) -> Tensor:
    full = images.repeat_interleave(len(pixels) // len(images), 0)
    full[..., *box.slices] = pixels
    return full


def close(got: Tensor, wanted: Tensor, bound: float = 1e-12) -> None:
    assert got.shape == wanted.shape
    got, wanted = got.detach(), wanted.detach()
    assert float(wanted.abs().max()) > 0
    assert float((got - wanted).abs().max()) <= bound * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("tiny", place) for place in BOXES),
        ("mcnn", "middle"),
        *(
            pytest.param("mcnn", place, marks=pytest.mark.long)
            for place in BOXES
            if place not in ("middle", "everything")
        ),
        pytest.param("mcnn c3", "middle", marks=pytest.mark.long),
        pytest.param("mcnn rgb", "bottom right corner, odd", marks=pytest.mark.long),
    ],
)
def test_a_window_gives_what_the_image_gives(
    name: str, place: str, counters: dict[str, Callable[[], Counter]]
) -> None:
    counter = counters[name]()
    stride, field = counter.stride, counter.receptive_field
    box = aligned(BOXES[place], SHAPE, stride)
    window = influence(box, SHAPE, stride=stride, receptive_field=field)
    images = image()
    inner = box.moved(-window.top, -window.left)
    local = Local(counter, images[..., *window.slices], inner)
    assert local.follows_layers
    pixels = image(box.shape, rows=2).requires_grad_()
    result = local(pixels)
    cells = local.cells.moved(window.top // stride, window.left // stride)
    after = counter(attacked(images, box, pixels))
    before = counter(images.expand(2, -1, -1, -1)).detach()
    close(local.clean, before[:1, :, *cells.slices])
    close(result, after[..., *cells.slices])
    rest = (after.detach() - before).clone()
    rest[..., *cells.slices] = 0
    assert not rest.any()
    (slope,) = torch.autograd.grad(result.square().sum(), pixels)
    (wanted,) = torch.autograd.grad(after[..., *cells.slices].square().sum(), pixels)
    close(slope, wanted)


def test_a_smaller_window_would_be_wrong(counters: dict[str, Callable[[], Counter]]) -> None:
    counter = counters["mcnn"]()
    box = Box(80, 80, 100, 100)
    results = []
    for field in (72, 48):
        window = influence(box, SHAPE, stride=4, receptive_field=field)
        inner = box.moved(-window.top, -window.left)
        local = Local(counter, image()[..., *window.slices], inner)
        pixels = torch.zeros(1, 3, 20, 20, dtype=torch.float64)
        results.append((local(pixels) - local.clean).sum())
    assert abs(results[0] - results[1]) > 1e-6 * abs(results[0])


def test_only_what_changes_is_computed(counters: dict[str, Callable[[], Counter]]) -> None:
    """20 pixels, with 4 at either side 28, pooled 14, with 3 at either side 20, pooled 10 or 11 (at
    this place 11), with twice 3 at either side 23."""
    local = Local(counters["mcnn"](), image(), Box(80, 80, 100, 100))
    assert local.cells.shape == (23, 23)


@pytest.mark.parametrize("box", [Box(8, 12, 21, 30), Box(0, 0, 5, 5), Box(30, 41, 41, 53)])
def test_rows_and_draws(box: Box, counter: Counter) -> None:
    images = image((41, 53), rows=3)
    pixels = image(box.shape, rows=6)
    local = Local(counter, images, box)
    together = local(pixels)
    for row in range(6):
        alone = Local(counter, images[row // 2 : row // 2 + 1], box)
        close(together[row : row + 1], alone(pixels[row : row + 1]))


@pytest.mark.parametrize(
    "bgr",
    [
        lambda x: x.flip(1),
        lambda x: x[:, [2, 1, 0]],
        lambda x: x.index_select(1, torch.tensor([2, 1, 0])),
    ],
)
def test_channels_in_another_order(bgr: Callable[[Tensor], Tensor]) -> None:
    """As OpenCV's networks want them: the image itself goes through the layer."""
    torch.manual_seed(5)
    net = nn.Conv2d(3, 1, 3, padding=1).double()
    counter = models.wrap(net.eval(), preprocess=lambda x: bgr(x) * 255, stride=1)
    images, box = image((18, 21), rows=2), Box(4, 6, 9, 13)
    local = Local(counter, images, box)
    pixels = image(box.shape, rows=2)
    assert local.follows_layers
    assert local.cells == Box(3, 5, 10, 14)
    close(local(pixels), counter(attacked(images, box, pixels))[..., *local.cells.slices])


# Counters of which a part is computed whole


class Ground(nn.Module):
    """Counters that differ in what follows a first convolution."""

    stride, receptive_field = 1, None

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.net = nn.Conv2d(3, 1, 3, padding=1)
        self.then = then
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.then(self.net(images))


class Outside:
    """A counter that is no module."""

    stride, receptive_field = 1, None

    def __init__(self) -> None:
        self.network = Ground(torch.relu)

    def __call__(self, images: Tensor) -> Tensor:
        density: Tensor = self.network(images)
        return density


class Reversed(torch.autograd.Function):
    """Made of layers with rules, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -2 * grad


def bicubic(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bicubic")


def self_attention(x: Tensor) -> Tensor:
    words = x.flatten(2).transpose(1, 2)
    share = torch.softmax(words @ words.transpose(1, 2), -1)
    return (share @ words).transpose(1, 2).view_as(x)


def data_dependent(x: Tensor) -> Tensor:
    return x.relu() if x.mean() > 0 else x.sigmoid()


def weighed_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        share = x.sigmoid()
    return share * x


WHOLE: dict[str, Callable[[], Counter]] = {
    "global pooling": lambda: Ground(lambda x: x * functional.adaptive_avg_pool2d(x, 1)),
    "bicubic": lambda: Ground(bicubic),
    "attention": lambda: Ground(self_attention),
    "no module": Outside,
    "data-dependent control flow": lambda: Ground(data_dependent),
    "by way of NumPy": lambda: Ground(lambda x: x * float(x.detach().numpy().max())),
    "a gradient of its own": lambda: Ground(Reversed.apply),
    "without gradient": lambda: Ground(weighed_without_gradient),
    "sum over the grid": lambda: Ground(lambda x: x + x.sum((2, 3), keepdim=True)),
    "sum over all": lambda: Ground(
        lambda x: torch.stack([y + y.mean() + torch.sum(y, [], keepdim=True) for y in x])
    ),
    "reflected border": lambda: Ground(lambda x: functional.pad(x, (1, 1, 1, 1), "reflect")),
    "every second row": lambda: Ground(lambda x: x[:, :, ::2]),
    "turned": lambda: Ground(lambda x: x.flip(-1)),
    "enlarged by 1.5": lambda: Ground(lambda x: functional.interpolate(x, scale_factor=1.5)),
    "joined down": lambda: Ground(lambda x: torch.cat([x, x], 2)),
    "image by image": lambda: Ground(lambda x: torch.stack([one * 2 for one in x])),
    "batch norm over rows": lambda: Ground(
        lambda x: functional.batch_norm(
            x.squeeze(1), torch.linspace(0, 1, x.shape[2]).to(x), torch.ones(x.shape[2]).to(x)
        ).unsqueeze(1)
    ),
    "mean near the border": lambda: Ground(
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    ),
    "transposed with gaps": lambda: Ground(
        lambda x: functional.conv_transpose2d(x, torch.ones(1, 1, 1, 1).to(x), stride=3, padding=1)
    ),
}


BLACK_BOXES = {
    *("no module", "data-dependent control flow", "by way of NumPy", "a gradient of its own"),
    "without gradient",
}
"""Those of which no layer can be followed."""


@pytest.mark.parametrize("name", WHOLE)
def test_layers_without_a_rule_are_computed_whole(name: str) -> None:
    counter = WHOLE[name]()
    images, box = image((18, 21), rows=2), Box(4, 6, 9, 13)
    graph = TracedGraph(counter)
    module = isinstance(counter, nn.Module) and name in BLACK_BOXES
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        local = Local(counter, images, box, traced=graph)
        Local(counter, images, Box(0, 0, 3, 3), traced=graph)
    assert len(said) == module, "once for each counter, and nothing for a plain function"
    assert module == (graph.obstacle is not None)
    for warning in said:
        assert f"layers cannot be followed ({graph.obstacle}): " in str(warning.message)
    assert (local.whole_layers is None) == (name in BLACK_BOXES)
    assert not local.follows_layers
    pixels = image(box.shape, rows=2).requires_grad_()
    result, after = local(pixels), counter(attacked(images, box, pixels))
    assert local.cells == Box(0, 0, *after.shape[-2:])
    close(local.clean, counter(images))
    close(result, after)
    (slope,) = torch.autograd.grad(result.square().sum(), pixels)
    (wanted,) = torch.autograd.grad(after.square().sum(), pixels)
    close(slope, wanted)


def test_rows_and_columns_are_cut_off() -> None:
    """As of padded images: also where a part of the change goes with them."""
    images = image((18, 21), rows=2)
    for cut in (slice(2, None), slice(None, -1), slice(3, 8)):
        counter = Ground(lambda x, cut=cut: x[:, :, cut, cut])
        for box in (Box(4, 6, 9, 13), Box(0, 0, 6, 5), Box(5, 14, 18, 21)):
            local = Local(counter, images, box)
            pixels = image(box.shape, rows=2).requires_grad_()
            before, after = counter(images), counter(attacked(images, box, pixels))
            close(local(pixels), after[..., *local.cells.slices])
            rest = (after - before).detach()
            assert local.follows_layers == bool(rest.any())  # else the change is all cut off
            rest[..., *local.cells.slices] = 0
            assert not rest.any()


def test_noise_stays_noise() -> None:
    counter = Ground(lambda x: x + torch.randn(x.shape, dtype=x.dtype))
    local = Local(counter, image((18, 21)), Box(4, 6, 9, 13))
    assert not local.follows_layers
    pixels = image((5, 7))
    assert not torch.equal(local(pixels), local(pixels))


@pytest.mark.parametrize(("dropout", "follows"), [(0.0, True), (0.5, False)])
def test_attention_is_random_only_with_dropout(dropout: float, follows: bool) -> None:
    """torch tags all attention as random; that of a text does not depend on the image."""
    tokens = torch.rand(1, 2, 5, 4, generator=torch.Generator().manual_seed(1)).double()

    def weighted(x: Tensor) -> Tensor:
        seen = functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=dropout)
        return x[:, :1].sigmoid() * seen.mean()

    counter = Ground(weighted)
    images, box = image((18, 21)), Box(4, 6, 9, 13)
    local = Local(counter, images, box)
    assert local.follows_layers == follows
    if follows:
        pixels = image(box.shape)
        close(local(pixels), counter(attacked(images, box, pixels))[..., *local.cells.slices])


def test_a_constant_gradient_stays() -> None:
    """``detach`` is a layer like others."""
    counter = Ground(lambda x: x.detach().sigmoid() * x)
    images, box = image((18, 21)), Box(4, 6, 9, 13)
    local = Local(counter, images, box)
    assert local.follows_layers
    pixels = image(box.shape).requires_grad_()
    (slope,) = torch.autograd.grad(local(pixels).sum(), pixels)
    (wanted,) = torch.autograd.grad(counter(attacked(images, box, pixels)).sum(), pixels)
    close(slope, wanted)


# What else is promised


def smooth() -> Counter:
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Sigmoid()),
        *(nn.Conv2d(3, 1, 1, stride=1), nn.Softplus()),
    )
    counter = Ground(net)
    counter.net = nn.Identity()
    return counter.double().eval()


@pytest.mark.parametrize("draws", [1, 2])
def test_gradients(draws: int) -> None:
    box = Box(3, 4, 6, 8)
    local = Local(smooth(), image((11, 12)), box)
    assert local.follows_layers
    pixels = image(box.shape, rows=draws).requires_grad_()
    assert torch.autograd.gradcheck(local, pixels)
    assert torch.autograd.gradgradcheck(local, pixels)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_refused() -> None:
    local = Local(smooth(), image((11, 12)), Box(3, 4, 6, 8))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(image((3, 4)), image((3, 4)))
        with pytest.raises(RuntimeError, match="jvp"):
            local(dual)


def test_weights_changed_in_place_are_honoured(counter: Counter) -> None:
    traced = TracedGraph(counter)
    images, box = image((41, 53)), Box(8, 12, 21, 30)
    pixels = image(box.shape)
    before = Local(counter, images, box, traced=traced)(pixels)
    with torch.no_grad():
        for tensor in (*counter.parameters(), *counter.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.25)
    local = Local(counter, images, box, traced=traced)
    after = counter(attacked(images, box, pixels))[..., *local.cells.slices]
    assert local.follows_layers
    close(local(pixels), after)
    assert not torch.allclose(before, after)


def test_windows_of_several_shapes_share_wirings(counter: Counter) -> None:
    traced = TracedGraph(counter)
    assert traced.of(image((41, 53))) is traced.of(image((41, 53), rows=4))
    assert traced.of(image((41, 53))) is not traced.of(image((40, 53)))


def test_the_windows_and_the_pixels_stay_as_they_are(counter: Counter) -> None:
    images, box = image((41, 53)), Box(8, 12, 21, 30)
    pixels = image(box.shape)
    Local(counter, images, box)(pixels)
    assert torch.equal(images, image((41, 53)))
    assert torch.equal(pixels, image(box.shape))


def test_without_autograd(counter: Counter) -> None:
    images, box = image((41, 53)), Box(8, 12, 21, 30)
    wanted = Local(counter, images, box)(image(box.shape))
    with torch.inference_mode():
        local = Local(counter, images, box)
        assert local.follows_layers
        assert torch.equal(local(image(box.shape)), wanted.detach())


def test_float32(counters: dict[str, Callable[[], Counter]]) -> None:
    counter = counters["mcnn"]()
    assert isinstance(counter, nn.Module)
    counter.float()
    images, box = image().float(), Box(60, 77, 80, 97)
    local = Local(counter, images, box)
    assert local.follows_layers
    pixels = image(box.shape).float()
    with torch.no_grad():
        close(local(pixels), counter(attacked(images, box, pixels))[..., *local.cells.slices], 1e-6)


@pytest.mark.parametrize(
    "box", [Box(0, 0, 42, 5), Box(-1, 0, 3, 3), Box(3, 3, 3, 9), Box(9, 60, 12, 70)]
)
def test_bad_boxes(box: Box, counter: Counter) -> None:
    with pytest.raises(ValueError, match=r"Local: box must lie inside the 41x53 pixels, got Box"):
        Local(counter, image((41, 53)), box)


@pytest.mark.parametrize(
    "shape", [(1, 3, 5, 5), (3, 3, 5, 5), (2, 1, 5, 5), (2, 3, 5, 4), (0, 3, 5, 5)]
)
def test_bad_pixels(shape: tuple[int, ...], counter: Counter) -> None:
    local = Local(counter, image((41, 53), rows=2), Box(0, 0, 5, 5))
    with pytest.raises(ValueError, match=r"Local: pixels must be \[2\*draws, 3, 5, 5\], got"):
        local(torch.zeros(shape, dtype=torch.float64))
