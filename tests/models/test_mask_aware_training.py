"""How mask-aware networks are trained, kept and found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.mask_nets import FUSED, VARIANTS, features, gradients, images, narrow, targets
from torch import nn

from pycc import models
from pycc.models.mask_aware import MaskAware
from pycc.models.mask_aware_net import mask_loss

pytestmark = pytest.mark.command


@pytest.mark.parametrize("variant", ["solution1", "solution4"])
def test_solutions_1_and_4_train_their_branches_apart(variant: str) -> None:
    """Given the true mask, the density's loss reaches the backbone but not the mask head."""
    counter = narrow(variant).train()
    truth = (targets() > 0).float()
    output, _ = counter.net.heads(features(counter, images()), truth)
    output.square().sum().backward()
    assert gradients(counter.net.mask) == 0
    assert gradients(counter.net.density) > 0
    assert gradients(counter.net.backbone) > 0
    counter.zero_grad()
    weights = [10.0, 20.0]
    of_mask = []
    for alpha in weights:  # the mask head's gradient does not depend on the density's weight
        counter.alpha = alpha
        counter.zero_grad()
        counter.loss(images(), targets()).backward()
        of_mask.append(counter.net.mask[0].weight.grad.clone())
    assert torch.equal(*of_mask)
    assert of_mask[0].abs().sum() > 0


@pytest.mark.parametrize("variant", ["solution2", "solution3", "solution5", "baseline3"])
def test_the_others_train_jointly(variant: str) -> None:
    counter = narrow(variant).train()
    counter(images()).square().sum().backward()
    assert gradients(counter.net.mask) > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["bce", "focal"])
@torch.no_grad()
def test_loss_by_hand(variant: str, kind: str) -> None:
    counter = narrow(variant, mask_loss=kind, gamma=1.5, alpha=0.25, scale=0.5).train()
    target, seen = targets(), features(counter, images())
    truth = (target > 0).float()
    output, first = counter.net.heads(seen, truth)
    expected = 0.25 * (((100 * (0.5 * output - target)) ** 2).sum() / target.numel())
    if variant == "baseline3":
        expected += ((100 * (0.5 * first - target)) ** 2).sum() / target.numel()
    elif variant.startswith("solution"):
        probability = 1 / (1 + torch.exp(-first.double()))
        right = torch.where(target > 0, probability, 1 - probability)
        power = 1.5 if kind == "focal" else 0.0
        expected = expected.double() - ((1 - right) ** power * right.log()).mean()
    torch.testing.assert_close(counter.loss(images(), target), expected.float())
    assert counter.loss(images(), target).dtype == torch.float32


def test_focal_loss() -> None:
    logits = torch.linspace(-12, 12, 61, requires_grad=True)
    mask = (torch.arange(61) % 2).float()
    plain = mask_loss(logits, mask, gamma=0.0)
    reference = nn.functional.binary_cross_entropy(torch.sigmoid(logits.double()), mask.double())
    torch.testing.assert_close(plain.double(), reference, rtol=1e-6, atol=0)
    torch.testing.assert_close(mask_loss(logits, mask, gamma=1e-9), plain)
    focal = mask_loss(logits, mask, gamma=2.0)
    assert focal < plain
    (slope,) = torch.autograd.grad(mask_loss(200 * logits, mask, gamma=0.5), logits)
    assert torch.isfinite(slope).all()  # where a probability is 0 or 1 in float32
    # An easy example (p_t = 0.9) weighs a hundredth: (1 − 0.9)².
    easy = torch.tensor([0.9]).logit()
    target = torch.ones(1)
    ratio = mask_loss(easy, target, gamma=2.0) / mask_loss(easy, target, gamma=0.0)
    torch.testing.assert_close(ratio, torch.tensor(0.01))


def test_loss_refuses_a_target_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"target must be \[2, 1, 6, 7\] .* got \[2, 1, 6, 6\]"):
        narrow().loss(images(), targets()[..., 1:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_steps_lower_the_loss(variant: str) -> None:
    counter = narrow(variant).train()
    adam = torch.optim.Adam(counter.parameters(), lr=1e-5)
    losses = []
    for _ in range(3):
        loss = counter.loss(images(), targets())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_recipe() -> None:
    recipe = models.create("mask_aware", width=4).recipe()
    adam, sgd = recipe.optimisers
    assert (adam.kind, adam.lr, adam.from_epoch) == ("adam", 1e-5, 0)
    # The eleventh epoch is number 10, counted from 0.
    assert (sgd.kind, sgd.lr, sgd.momentum, sgd.from_epoch) == ("sgd", 1e-5, 0.9, 10)
    assert (recipe.schedule.kind, recipe.schedule.period, recipe.schedule.factor) == (
        "step",
        20,
        0.1,
    )
    assert (recipe.crop.number, recipe.crop.size, recipe.flip) == (200, (160, 192), 0.5)
    assert recipe.down_sampling == "sum"
    csr = models.create("mask_aware", backbone="csr", variant="baseline1").recipe()
    assert (csr.crop.kind, csr.flip, csr.batch) == ("whole", 0.0, 1)
    assert [optimiser.kind for optimiser in csr.optimisers] == ["sgd"]


@pytest.mark.parametrize("variant", ["solution1", "baseline3"])
@torch.no_grad()
def test_weights_survive_saving(variant: str, tmp_path: Path) -> None:
    counter = narrow(variant, alpha=3.0).eval()
    models.save(counter, tmp_path / "counter.npz", metadata={})
    again = models.load(tmp_path / "counter.npz", gamma=1.0)
    assert again.options() == {**counter.options(), "gamma": 1.0}
    assert torch.equal(again(images()), counter(images()))
    with pytest.raises(ValueError, match="was trained with width=4, got width=8"):
        models.load(tmp_path / "counter.npz", width=8)


@torch.no_grad()
def test_bare_weights_are_found_and_their_variant_is_reported(tmp_path: Path) -> None:
    counter = narrow("solution3").eval()
    torch.save(counter.net.state_dict(), tmp_path / "bare.pth")
    loaded = models.load(tmp_path / "bare.pth", variant="solution3")
    assert isinstance(loaded, MaskAware)
    assert torch.equal(loaded(images()), counter(images()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_shapes_tell_the_network(variant: str) -> None:
    """Not the solution: of those with the same keys the best by the paper's tables is taken."""
    taken = {"solution1": "solution2", "solution3": "solution2"}
    taken |= {"solution4": "solution5", "baseline3": "solution5"}
    fused = {"mask_features": [4, 8]} if variant in FUSED else {}
    expected = {"variant": taken.get(variant, variant), "backbone": "own", "width": 4, **fused}
    assert MaskAware.recognise(narrow(variant).net.state_dict()) == expected


def test_recognition_looks_at_the_backbone() -> None:
    with torch.device("meta"):
        state = models.create("mask_aware", backbone="csr", mask_features=(8,)).net.state_dict()
    expected = {"variant": "solution5", "backbone": "csr", "mask_features": [8]}
    assert MaskAware.recognise(state) == expected
    assert MaskAware.recognise({"backbone.conv1.weight": torch.zeros(1)}) is None
    assert MaskAware.recognise(models.create("mcnn").net.state_dict()) is None
    odd = {f"backbone.unit{unit}.short.0.weight": torch.tensor(0.0) for unit in (1, 2)}
    assert MaskAware.recognise(odd) == {"variant": "baseline1", "backbone": "own"}
