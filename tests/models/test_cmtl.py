"""CMTL against the published network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support.published import close, published_input, published_state
from torch.nn import functional

from pycc import models
from pycc.models.cmtl import CMTL, class_weights

Fixture = Callable[[str], NpzFile]


@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture) -> None:
    numbers = fixture("CMTL")
    counter = models.create("cmtl").eval()
    net = counter.net
    state = published_state(numbers, "CCN.")
    assert set(net.state_dict()) == set(state)
    net.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in net.parameters()) == 2_453_619 == numbers["n_params"]
    seen = {}
    parts = {
        "prior_features": net.hl_prior_1,
        "fc1": net.hl_prior_fc1,
        "density_features": net.de_stage_1,
        "pre_relu": net.de_stage_2[6].conv,
    }
    for name, part in parts.items():
        # The ReLU that follows must not overwrite what is compared.
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    for case in range(len(numbers["seeds"])):
        x = published_input(numbers, case)
        density, scores = net(x)
        assert close(density, numbers[f"out_{case}"])
        assert close(scores, numbers[f"class_scores_{case}"])
        assert close(scores.softmax(1), numbers[f"class_prob_{case}"])
        for name, output in seen.items():
            expected = numbers[f"aux_{name}_{case}"]
            kept = output[:, : expected.shape[1]] if output.ndim == 4 else output
            assert close(kept, expected), name


@torch.no_grad()
def test_cells_are_sums_of_pixels() -> None:
    torch.manual_seed(0)
    cells = models.create("cmtl").eval()
    for parameter in cells.parameters():
        torch.nn.init.uniform_(parameter, -0.01, 0.03)
    pixels = models.create("cmtl", stride=1).eval()
    pixels.net.load_state_dict(cells.net.state_dict())
    images = torch.rand(1, 3, 45, 62)
    fine, coarse = pixels(images), cells(images)
    assert fine.shape == (1, 1, 45, 62)
    assert coarse.shape == (1, 1, 11, 15)
    assert (fine[..., 44:, :] == 0).all()
    assert (fine[..., 60:] == 0).all()
    torch.testing.assert_close(coarse, functional.avg_pool2d(fine, 4) * 16)
    torch.testing.assert_close(pixels.net(pixels.preprocess(images))[0], fine[..., :44, :60])
    assert (cells.receptive_field, pixels.receptive_field) == (110, None)


def test_loss_is_the_published_one() -> None:
    torch.manual_seed(0)
    weights = class_weights([3, 40, 41, 90, 100])
    counter = models.create("cmtl", stride=1, count_range=[3, 100], class_weights=weights).eval()
    images = torch.rand(2, 3, 16, 20)
    target = torch.rand(2, 1, 16, 20)
    target *= torch.tensor([47.0, 500.0]).view(2, 1, 1, 1) / target.sum((1, 2, 3), keepdim=True)
    density, scores = counter.net(counter.preprocess(images))
    wanted = torch.zeros(2, 10)
    wanted[0, 5] = wanted[1, 9] = 1.0  # 47 / 9.7 = 4.8; 500 is above all
    entropy = torch.nn.BCELoss(weight=torch.tensor(weights))(scores.softmax(1), wanted)
    expected = functional.mse_loss(density, target) + 1e-4 * entropy
    torch.testing.assert_close(counter.loss(images, target), expected)
    with pytest.raises(ValueError, match=r"cmtl\.loss: target must be"):
        counter.loss(images, target[:, :, :4])


def test_classes_are_those_of_the_crops_that_are_trained_on() -> None:
    counts = [3.0, 40.0, 41.0, 90.0, 100.0]
    counter = models.create("cmtl")
    counter.learns_from(lambda: counts)
    assert counter.count_range == (3.0, 100.0)
    assert counter.class_weights == pytest.approx(class_weights(counts))
    known = models.create("cmtl", count_range=[0, 50])
    known.learns_from(lambda: pytest.fail("nothing is to be found"))
    assert (known.count_range, known.class_weights) == ((0.0, 50.0), None)
    even = models.create("cmtl")
    even.learns_from(lambda: [7.0, 7.0])
    assert even.options() == models.create("cmtl").options()


def test_loss_under_autocast_has_exact_classes() -> None:
    """Torch forbids binary cross-entropy in reduced precision on CUDA."""
    torch.manual_seed(0)
    counter = models.create("cmtl").eval()
    images, target = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 8, 8)
    seen = []
    entropy = functional.binary_cross_entropy

    def watched(shares: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        seen.append((shares.dtype, torch.is_autocast_enabled("cpu")))
        return entropy(shares, *rest, **more)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(functional, "binary_cross_entropy", watched)
        loss = counter.loss(images, target)
    assert seen == [(torch.float32, False)]
    torch.testing.assert_close(loss.float(), counter.loss(images, target), rtol=0.05, atol=0.0)


def test_class_weights() -> None:
    weights = class_weights([0, 10, 20, 21, 100])
    # Shares by class: 0: 1/5; 1: 1/5; 2: 2/5 (20 and 21); 9: 1/5 (100 / 10 is capped).
    shares = [0.2, 0.2, 0.4, 0, 0, 0, 0, 0, 0, 0.2]
    assert weights == pytest.approx([(1 - share) / 9 for share in shares])
    for counts in ([], [7, 7]):
        with pytest.raises(ValueError, match="needs different counts"):
            class_weights(counts)


def test_dropout_belongs_to_training() -> None:
    counter = models.create("cmtl")
    x = torch.full((1, 1, 16, 16), 255.0)
    for parameter in counter.parameters():
        torch.nn.init.uniform_(parameter, 0.0, 0.01)
    assert not torch.equal(counter.net(x)[1], counter.net(x)[1])
    counter.eval()
    assert torch.equal(counter.net(x)[1], counter.net(x)[1])


def test_recipe_keys_and_options() -> None:
    counter = models.create("cmtl")
    recipe = counter.recipe()
    assert (recipe.optimisers[0].lr, recipe.epochs, recipe.down_sampling) == (1e-5, 2001, "sum")
    assert CMTL.recognise(counter.net.state_dict()) == {"variant": "svishwa"}
    assert CMTL.recognise(models.create("cmtl", variant="c3").net.state_dict()) == {"variant": "c3"}
    for options, message in (
        ({"stride": 2}, "stride must be 1 or 4, got 2"),
        ({"count_range": [3]}, "count_range must be 2 numbers"),
        ({"count_range": [3, 3]}, "count_range must rise"),
        ({"class_weights": [1.0] * 9}, "class_weights must be 10 numbers"),
        ({"variant": "lua"}, "variant must be 'svishwa' or 'c3'"),
    ):
        with pytest.raises(ValueError, match=message):
            models.create("cmtl", **options)
