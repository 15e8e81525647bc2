"""Mask-aware networks: there are no public weights, so their defining facts are tested."""

from __future__ import annotations

import pytest
import torch
from support.mask_nets import VARIANTS, features, images, narrow, targets
from torch import Tensor, nn

from pycc import models
from pycc.models import mask_aware_net


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 5_031_618),
        ({"variant": "solution4"}, 5_031_618),
        ({"variant": "baseline3"}, 5_031_618),
        ({"variant": "solution1"}, 3_482_050),
        ({"variant": "solution2"}, 3_482_050),
        ({"variant": "solution3"}, 3_482_050),
        ({"variant": "baseline1"}, 2_891_713),
        ({"variant": "baseline2"}, 4_071_873),
        ({"width": 128}, 4_433_218),
        ({"width": 64}, 3_580_482),
        ({"mask_features": (256,)}, 4_664_514),
        ({"backbone": "csr"}, 11_545_410),
    ],
)
def test_parameters(options: dict[str, object], parameters: int) -> None:
    """Solution 5 comes closest below the 5.1 million parameters that the paper states."""
    with torch.device("meta"):
        counter = models.create("mask_aware", **options)
    assert sum(p.numel() for p in counter.parameters()) == parameters


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_odd_sides(variant: str) -> None:
    counter = narrow(variant)
    for mode in (True, False):
        assert counter.train(mode)(images(35, 22)).shape == (2, 1, 8, 5)


@torch.no_grad()
def test_csr_counts_in_cells_of_eight_pixels() -> None:
    counter = models.create("mask_aware", backbone="csr", mask_features=(4,)).eval()
    assert (counter.stride, counter.minimum_side) == (8, 8)
    assert counter(images(35, 22)).shape == (2, 1, 4, 2)
    with pytest.raises(ValueError, match="at least 8x8 pixels, got 7x16"):
        counter(images(7, 16))
    white = counter.preprocess(torch.ones(1, 3, 8, 8))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(white[0, :, 0, 0], expected)
    assert models.create("mask_aware").preprocess(torch.ones(1, 3, 8, 8)).shape == (1, 1, 8, 8)


@torch.no_grad()
def test_solution_1_multiplies_by_the_binary_mask() -> None:
    counter = narrow("solution1").eval()
    seen = features(counter, images())
    mask = counter.net.mask(seen) > 0
    assert 0.2 < mask.float().mean() < 0.8
    free = counter.net.density(seen)
    assert torch.equal(counter(images()), free * mask)
    truth = (targets() > 0).float()
    assert torch.equal(counter.net.heads(seen, truth)[0], free * truth)


@torch.no_grad()
def test_solution_2_multiplies_by_the_probability() -> None:
    counter = narrow("solution2").eval()
    seen = features(counter, images())
    expected = counter.net.density(seen) / (1 + torch.exp(-counter.net.mask(seen)))
    torch.testing.assert_close(counter(images()), expected)


def test_solution_3_passes_the_gradient_straight_through() -> None:
    counter = narrow("solution3").eval()
    seen = features(counter, images()).detach()
    free = counter.net.density(seen).detach()
    logits: list[Tensor] = []
    counter.net.mask.register_forward_hook(lambda *call: logits.append(call[2]))
    output, _ = counter.net.heads(seen)
    probability = torch.sigmoid(logits[0])
    assert torch.equal(output != 0, (probability > 0.5) & (free != 0))
    assert torch.equal(output, free * (probability > 0.5))
    # Equation (4): d output / d probability = density · 1, on both sides of the threshold.
    (gradient,) = torch.autograd.grad(output.sum(), logits[0])
    torch.testing.assert_close(gradient, free * probability * (1 - probability))


@torch.no_grad()
def test_solutions_4_and_5_differ_in_what_the_convolutions_see() -> None:
    counters = {variant: narrow(variant).eval() for variant in ("solution4", "solution5")}
    state = counters["solution4"].net.state_dict()
    counters["solution5"].net.load_state_dict(state)
    for variant, counter in counters.items():
        seen = features(counter, images())
        probability = torch.sigmoid(counter.net.mask(seen))
        shown = (probability > 0.5).float() if variant == "solution4" else probability
        both = torch.cat([seen, counter.net.mask_features(shown)], 1)
        torch.testing.assert_close(counter(images()), counter.net.density(both))
    outputs = [counter(images()) for counter in counters.values()]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["solution1", "solution4"])
@torch.no_grad()
def test_without_a_true_mask_training_uses_the_predicted_one(variant: str) -> None:
    counter = narrow(variant)
    assert torch.equal(counter.train()(images()), counter.eval()(images()))
    truth = (targets() > 0).float()
    guided = counter.net.heads(features(counter, images()), truth)[0]
    assert not torch.equal(guided, counter(images()))


@torch.no_grad()
def test_baseline_3_is_solution_5_without_the_sigmoid() -> None:
    counter, other = narrow("baseline3").eval(), narrow("solution5").eval()
    other.net.load_state_dict(counter.net.state_dict())
    assert not torch.equal(counter(images()), other(images()))
    other.net.probability = nn.Identity()
    assert torch.equal(counter(images()), other(images()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_counting_is_differentiable_to_the_image(variant: str) -> None:
    x = images().requires_grad_()
    narrow(variant).eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", ["solution2", "baseline2", "solution5"])
def test_receptive_field(variant: str) -> None:
    """The wiring's, with the sigmoid, flat in float64 above 37, taken for the identity."""
    counter = narrow(variant)
    counter.net.probability = nn.Identity()
    measured = models.measure_receptive_field(counter, probe_side=208)
    assert measured is not None
    assert (measured.side, measured.before) == (counter.receptive_field, measured.after)


def test_declared_receptive_fields() -> None:
    """120 pixels of the backbone (csr 108), and two cells for every 3x3 convolution."""
    hidden = {"baseline2": 144, "solution4": 168, "solution5": 168, "baseline3": 168}
    for variant, design in mask_aware_net.DESIGNS.items():
        field = mask_aware_net.receptive_field("own", design, (64, 128, 256))
        assert field == hidden.get(variant, 128)
    best = mask_aware_net.DESIGNS["solution5"]
    assert mask_aware_net.receptive_field("csr", best, (64, 128, 256)) == 204


@torch.no_grad()
def test_a_hard_mask_reaches_as_far_as_a_soft_one() -> None:
    """No measurement sees through a threshold, so pixels outside solution 4's field are changed."""
    counter = narrow("solution4").double().eval()
    margin = (counter.receptive_field - 4) // 2  # 78 pixels around a cell
    x = torch.rand(1, 3, 4, 180, dtype=torch.float64)
    changed = x.clone()
    changed[..., 84 + margin :] = 1 - changed[..., 84 + margin :]
    before, after = counter(x), counter(changed)
    assert torch.equal(before[..., :21], after[..., :21])
    assert not torch.equal(before, after)


@torch.no_grad()
def test_csr_adopts_vgg() -> None:
    counter = models.create("mask_aware", backbone="csr", mask_features=(4,))
    drawn = {
        f"features.{key}": torch.randn(tensor.shape)
        for key, tensor in counter.net.backbone.vgg.state_dict().items()
    }
    taken = counter.adopt(drawn)
    assert taken is not None
    assert "10 convolutions" in taken
    for key, tensor in counter.net.backbone.vgg.state_dict().items():
        assert torch.equal(tensor, drawn[f"features.{key}"])
    assert counter.adopt({"fc.weight": torch.zeros(1)}) is None
    assert narrow().adopt(drawn) is None


def test_fresh_weights_are_the_published_draw() -> None:
    torch.manual_seed(0)
    counter = models.create("mask_aware")
    for parameter in counter.parameters():
        if parameter.ndim == 1:
            assert (parameter == 0).all()
        elif parameter.numel() > 10_000:
            assert float(parameter.detach().std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("variant", ["solution3", "solution5"])
@torch.no_grad()
def test_it_exports(variant: str) -> None:
    counter = narrow(variant).eval()
    exported = torch.export.export(counter, (images(),)).module()
    torch.testing.assert_close(exported(images()), counter(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "solution6"}, "variant must be 'solution1' or .* got 'solution6'"),
        ({"variant": 5}, "variant must be .* got 5"),
        ({"backbone": "vgg"}, "backbone must be 'own' or 'csr', got 'vgg'"),
        ({"mask_loss": "dice"}, "mask_loss must be 'bce' or 'focal', got 'dice'"),
        ({"gamma": -1}, "gamma must be a finite number of at least 0, got -1"),
        ({"gamma": float("nan")}, "gamma must be a finite number of at least 0, got nan"),
        ({"alpha": "1"}, "alpha must be a finite number of at least 0, got '1'"),
        ({"alpha": True}, "alpha must be a finite number of at least 0, got True"),
        ({"width": 0}, "width must be an integer in 1…4096, got 0"),
        ({"width": 8.0}, r"width must be an integer in 1…4096, got 8\.0"),
        ({"width": 8, "backbone": "csr"}, "width belongs to backbone 'own', got 'csr'"),
        ({"mask_features": []}, r"mask_features must be 1 to 16 integers .* got \[\]"),
        ({"mask_features": 256}, "mask_features must be 1 to 16 integers .* got 256"),
        ({"mask_features": [64, 0]}, r"mask_features must be .* got \[64, 0\]"),
        (
            {"mask_features": [8], "variant": "solution2"},
            "mask_features belong to solutions 4, 5 and baseline 3, got variant 'solution2'",
        ),
        ({"input": "rgb255"}, "1 input channels"),
        ({"input": "gray255", "backbone": "csr"}, "3 input channels"),
        ({"mean": [0.5] * 3}, "rgb_standard"),
        ({"scale": 0}, "scale must be a number above 0"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"mask_aware: .*{message}") as caught:
        models.create("mask_aware", **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
