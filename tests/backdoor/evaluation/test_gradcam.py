"""Grad-CAM of a count against values by hand, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.backdoor.evaluation.gradcam import default_layers, gradcam, layers
from pycc.defense import ablated


class Net(nn.Module):
    """A front end, a back end and a head; stride 2."""

    stride = 2
    receptive_field = None

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.frontend = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=inplace), nn.MaxPool2d(2)
        )
        self.backend = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(inplace=inplace))
        self.head = nn.Conv2d(4, 1, 1)
        self.never = nn.Conv2d(4, 1, 1)
        self.vector = nn.Linear(4, 1)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        features = self.backend(self.frontend(images))
        scale = 1 + self.vector(features.mean((2, 3))).square()
        density: Tensor = self.head(features) * scale[:, :, None, None]
        return density


class Defended(nn.Module):
    """A counter around another; ``rows`` images at once, ``calls`` times."""

    stride = 2
    receptive_field = None

    def __init__(self, counter: nn.Module, *, rows: int = 1, calls: int = 1) -> None:
        super().__init__()
        self.counter, self.rows, self.calls = counter, rows, calls

    def forward(self, images: Tensor) -> Tensor:
        batch = images.expand(self.rows, -1, -1, -1)
        maps = [self.counter(batch).mean(0, keepdim=True) for _ in range(self.calls)]
        return torch.stack(maps).mean(0)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1))


def test_people_outside_the_region_of_interest_are_no_part_of_the_count(image: Tensor) -> None:
    """Grad-CAM of the count in a region is that of a counter that counts nobody elsewhere."""
    roi = torch.zeros(12, 16, dtype=torch.bool)
    roi[3:9, 5:] = True

    class Within(Net):
        def forward(self, images: Tensor) -> Tensor:
            share = functional.avg_pool2d(roi[None, None].float(), 2)
            return super().forward(images) * share

    for layer in ("frontend.1", "backend.1"):
        inside, everywhere = gradcam(Net(), image, layer, roi), gradcam(Net(), image, layer)
        expected = gradcam(Within(), image, layer)
        torch.testing.assert_close(inside.heat, expected.heat)
        assert inside.count == pytest.approx(expected.count)
        assert inside.count != pytest.approx(everywhere.count, rel=0.05)
        assert inside.maximum != pytest.approx(everywhere.maximum, rel=0.05)
    with pytest.raises(ValueError, match=r"6x16 pixels has .* cells of stride \d, got 6x8"):
        gradcam(Net(), image, "backend.1", roi[:6])


def by_hand(net: Net, image: Tensor, layer: str) -> tuple[Tensor, float, float]:
    """Heat, maximum and count by the formula, the layers called one by one."""
    x = image[None]
    activation = None
    names = ["frontend.0", "frontend.1", "frontend.2", "backend.0", "backend.1"]
    for name in names:
        part = net.get_submodule(name)
        x = functional.relu(x) if isinstance(part, nn.ReLU) else part(x)
        if name == layer:
            x = activation = x.detach().requires_grad_(True)
    assert activation is not None
    scale = 1 + net.vector(x.mean((2, 3))).square()
    count = (net.head(x) * scale[:, :, None, None]).sum()
    (gradient,) = torch.autograd.grad(count, activation)
    _, channels, height, width = activation.shape
    cells = torch.zeros(height, width)
    for k in range(channels):
        cells += gradient[0, k].sum() / (height * width) * activation[0, k].detach()
    cells = cells.clamp(min=0)
    heat = functional.interpolate(
        cells[None, None], image.shape[1:], mode="bilinear", align_corners=False
    )
    return heat[0, 0] / cells.max(), float(cells.max()), float(count.detach())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "layer", ["frontend.0", "frontend.1", "frontend.2", "backend.0", "backend.1"]
)
def test_it_is_the_formula(image: Tensor, layer: str, inplace: bool) -> None:
    net = Net(inplace=inplace)
    cam = gradcam(net, image, layer)
    heat, maximum, count = by_hand(net, image, layer)
    assert maximum > 0, "a map that is nowhere above 0 would test nothing"
    torch.testing.assert_close(cam.heat, heat, rtol=1e-4, atol=1e-5)
    assert cam.maximum == pytest.approx(maximum, rel=1e-4)
    assert cam.count == pytest.approx(count, rel=1e-5)
    assert cam.heat.shape == image.shape[1:]
    assert 0 <= cam.heat.min() <= cam.heat.max() <= 1
    assert not cam.heat.requires_grad


class Linear(nn.Module):
    """A pointwise linear counter: count = Σ_k w_k Σ A_k, A = V x."""

    stride = 1
    receptive_field = 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1, bias=False)
        self.second = nn.Conv2d(2, 1, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])[..., None, None]
        self.second.weight.data = torch.tensor([[2.0, -1.0]])[..., None, None]

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = self.second(self.first(images))
        return density


def test_of_a_linear_counter_it_is_the_density(image: Tensor) -> None:
    """dcount/dA_k = w_k everywhere: Σ w_k A_k is the density map itself, less what is below 0."""
    net = Linear()
    expected = (2 * (image[0] + 2 * image[1]) - (-image[1] + 3 * image[2])).clamp(min=0)
    cam = gradcam(net, image, "first")
    assert cam.maximum == pytest.approx(float(expected.max()), rel=1e-5)
    torch.testing.assert_close(cam.heat * cam.maximum, expected, rtol=1e-4, atol=1e-5)


def test_nothing_raises_the_count(image: Tensor) -> None:
    net = Linear()
    net.second.weight.data = -torch.ones(1, 2, 1, 1)
    net.first.weight.data = torch.ones(2, 3, 1, 1)
    cam = gradcam(net, image, "first")
    assert cam.maximum == 0
    assert not cam.heat.any()


@pytest.mark.parametrize(("rows", "calls"), [(3, 1), (1, 2), (2, 2)])
def test_a_defended_counter(image: Tensor, rows: int, calls: int) -> None:
    """Means of equal draws: each contributes its part, and the parts add up to the whole."""
    net = Net()
    alone = gradcam(net, image, "backend.1")
    cam = gradcam(Defended(net, rows=rows, calls=calls), image, "counter.backend.1")
    assert cam.maximum == pytest.approx(alone.maximum, rel=1e-4)
    torch.testing.assert_close(cam.heat, alone.heat, rtol=1e-4, atol=1e-5)


def test_a_pass_without_gradient_is_left_out(image: Tensor) -> None:
    class Median(Defended):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                self.counter(images)
                self.counter(images[..., :8])
            return super().forward(images)

    net = Net()
    cam = gradcam(Median(net), image, "counter.backend.1")
    assert cam.maximum == pytest.approx(gradcam(net, image, "backend.1").maximum, rel=1e-5)


def test_draws_that_are_computed_once_more(image: Tensor) -> None:
    """As a defense does whose draws' activations do not fit into memory together."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Defended):
        def forward(self, images: Tensor) -> Tensor:
            maps = [
                checkpoint(
                    self.counter, images * scale, use_reentrant=False, preserve_rng_state=False
                )
                for scale in (1.0, 0.5)
            ]
            return torch.stack(maps).sum(0)

    class Plain(Defended):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([self.counter(images * scale) for scale in (1.0, 0.5)]).sum(0)

    net = Net()
    cam = gradcam(Checkpointed(net), image, "counter.backend.1")
    expected = gradcam(Plain(net), image, "counter.backend.1")
    assert cam.maximum == pytest.approx(expected.maximum, rel=1e-5)
    torch.testing.assert_close(cam.heat, expected.heat)


@pytest.mark.parametrize("combine", ["mean", "median"])
def test_a_counter_under_ablation(image: Tensor, combine: str) -> None:
    """Pixels that are all kept change nothing; the draws are counted batch by batch."""
    net = Net()
    defended = ablated(net, 12 * 16, draws=3, fill=0.5, combine=combine, budget=2 * 12 * 16)
    cam = gradcam(defended, image, "counter.backend.1")
    alone = gradcam(net, image, "backend.1")
    assert cam.count == pytest.approx(alone.count, rel=1e-5)
    assert cam.maximum == pytest.approx(alone.maximum, rel=1e-4)
    torch.testing.assert_close(cam.heat, alone.heat, rtol=1e-4, atol=1e-5)


def test_of_repeated_runs_the_last_counts(image: Tensor) -> None:
    class Repeated(Net):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            x = self.frontend(images)
            x = self.act(self.backend[0](self.act(x)))
            density: Tensor = self.head(x)
            return density

    net = Repeated()
    cam = gradcam(net, image, "act")
    with torch.no_grad():
        x = functional.relu(net.backend[0](net.frontend(image[None])))
    cells = (net.head.weight.detach()[0, :, 0, 0, None, None] * x[0]).sum(0).clamp(min=0)
    assert cam.maximum == pytest.approx(float(cells.max()), rel=1e-4)


def test_what_others_write_over_is_seen_as_it_was(image: Tensor) -> None:
    """A layer that hands on what it is given, and a second user that changes it in place."""

    class Shared(Net):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            x = self.backend(self.frontend(images))
            density: Tensor = self.head(self.same(x))
            x.detach().zero_()
            return density

    net = Shared()
    cam = gradcam(net, image, "same")
    with torch.no_grad():
        x = net.backend(net.frontend(image[None]))
        cells = (net.head.weight[0, :, 0, 0, None, None] * x[0]).sum(0).clamp(min=0)
    assert cam.maximum == pytest.approx(float(cells.max()), rel=1e-4)


def test_frozen_parameters_and_outer_modes_do_not_matter(image: Tensor) -> None:
    net = Net()
    expected = gradcam(net, image, "backend.1")
    net.requires_grad_(False)
    with torch.no_grad():
        cam = gradcam(net, image, "backend.1")
    torch.testing.assert_close(cam.heat, expected.heat)
    with torch.inference_mode():
        cam = gradcam(net, image * 1, "backend.1")
    torch.testing.assert_close(cam.heat, expected.heat)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Modes(Net):
    """With parts that differ in mode and statistics that train mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.train()
        self.frontend.eval()

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = self.head(self.norm(self.backend(self.frontend(images))))
        return density


def test_it_leaves_no_trace(image: Tensor) -> None:
    net = Modes()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    gradcam(net, image, "norm")
    layers(net)
    default_layers(net)
    assert [part.training for part in net.modules()] == modes
    assert len(set(modes)) == 2
    assert hooks(net) == 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is not None and (p.grad == 7.0).all() for p in net.parameters())
    assert image.grad is None
    assert not image.requires_grad


class Broken(Net):
    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        raise RuntimeError("out of order")


def test_hooks_and_modes_are_restored_after_errors(image: Tensor) -> None:
    net = Broken().train()
    for ask in (lambda: gradcam(net, image, "backend.1"), lambda: layers(net)):
        with pytest.raises(RuntimeError, match="out of order"):
            ask()
        assert hooks(net) == 0
        assert all(part.training for part in net.modules())


def test_bad_layers_are_refused(image: Tensor) -> None:
    net = Net()
    for layer, message in (
        ("backend.9", r"got 'backend\.9'; nearest: backend\.[01]"),
        ("", r"got ''; nearest: "),
        ("never", r"'never' did not run"),
        ("vector", r"must return \[N,K,h,w\], 'vector' returned \[1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            gradcam(net, image, layer)
        assert hooks(net) == 0


def test_layers_that_tell_nothing_are_refused(image: Tensor) -> None:
    class Odd(Net):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.backend(self.frontend(images))
            self.never(x)
            density: Tensor = self.head(x)
            return density

    net = Odd()
    with pytest.raises(ValueError, match=r"'backend\.1' ran only without gradient"):
        gradcam(net, image, "backend.1")
    with pytest.raises(ValueError, match=r"must depend on layer, it has no gradient by 'never'"):
        gradcam(net, image, "never")

    class Tiles(Defended):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([self.counter(images[..., :8]), self.counter(images[..., 8:])], 3)

    with pytest.raises(ValueError, match=r"whole image of 12x16 pixels, .* is shown 12x8"):
        gradcam(Tiles(Net()), image, "counter.backend.1")


def test_bad_counters_and_images_are_refused(image: Tensor) -> None:
    class Plain:
        stride = 1
        receptive_field = 1

        def __call__(self, images: Tensor, /) -> Tensor:
            return images[:, :1]

    with pytest.raises(TypeError, match="must be a module with named layers, got Plain"):
        gradcam(Plain(), image, "x")
    with pytest.raises(ValueError, match=r"image must be \[3,H,W\] .*, got \[1, 3, 12, 16\]"):
        gradcam(Net(), image[None], "backend.1")


def test_layers_are_those_with_maps_in_the_order_in_which_they_run() -> None:
    names = layers(Net())
    assert names == [
        "frontend.0", "frontend.1", "frontend.2", "frontend", "backend.0", "backend.1", "backend",
        "head",
    ]  # fmt: skip
    for layer in names:
        gradcam(Net(), torch.rand(3, 12, 16), layer)


def test_the_default_layers() -> None:
    assert default_layers(Net()) == ("frontend.1", "backend.1")
    assert default_layers(Defended(Net())) == ("counter.frontend.1", "counter.backend.1")

    class Named(nn.Module):
        stride = 1
        receptive_field = None

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.PReLU(), nn.Conv2d(4, 2, 1),
                nn.GELU(), nn.Conv2d(2, 1, 1), nn.ReLU(),
            )  # fmt: skip

        def forward(self, images: Tensor) -> Tensor:
            density: Tensor = self.body(images)
            return density

    assert default_layers(Named()) == ("body.3", "body.5"), "not the one behind the head"

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.conv(x), inplace=True)

    class Functions(Named):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Block(3), Block(4), nn.Conv2d(4, 1, 1))

    assert default_layers(Functions()) == ("body.0", "body.1"), "blocks, not their convolutions"

    class Columns(Named):
        """Parallel columns: the second is not computed from the first."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Sequential(Block(3), Block(4)) for _ in range(2))
            self.head = nn.Conv2d(8, 1, 1)

        def forward(self, images: Tensor) -> Tensor:
            density: Tensor = self.head(torch.cat([self.one(images), self.two(images)], 1))
            return density

    assert default_layers(Columns()) == ("two.0", "two")

    with pytest.raises(ValueError, match=r"must have two layers with maps before its head"):
        default_layers(Linear())
