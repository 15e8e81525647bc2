"""CLIP-EBC against the published network; what does not need its size, on a narrow one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support.published import close, images_of, published_input, published_state
from torch import Tensor, nn

from pycc import models
from pycc.models import clip_ebc, dace
from pycc.models.clip import PROMPTS
from pycc.models.clip_ebc import CLIPEBC
from pycc.models.clip_ebc_net import CLIPEBCNet

Fixture = Callable[[str], NpzFile]
SIZES = {"width": 8, "embedding": 32, "text_width": 64, "text_layers": 2}


def randomise(counter: CLIPEBC, seed: int = 1) -> CLIPEBC:
    """Weights of the fixtures' sizes, so that all parts of the network matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in counter.net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim >= 2:
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            elif parameter.ndim == 1:
                parameter.copy_(0.5 + 0.1 * noise)
    return counter


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are of a width that computes in no time."""
    monkeypatch.setattr(clip_ebc, "CLIPEBCNet", partial(CLIPEBCNet, **SIZES))


@pytest.fixture
def counter(narrow: None) -> CLIPEBC:
    return randomise(CLIPEBC()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def published(fixture: Fixture) -> tuple[CLIPEBC, NpzFile]:
    """The counter with the fixture's weights, drawn once."""
    data = fixture("CLIP_EBC")
    with torch.device("meta"):
        counter = CLIPEBC(data="shanghaitech_b")
    counter.net.load_state_dict(published_state(data), assign=True)
    return counter.eval(), data


# --- the published network


@pytest.mark.long
@pytest.mark.command
@torch.no_grad()
def test_output_is_the_published_networks(published: tuple[CLIPEBC, NpzFile]) -> None:
    counter, data = published
    net = counter.net
    assert close(net.prompt_features(), data["text_features"])
    kept: dict[str, Tensor] = {}
    for case in range(len(data["seeds"])):
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name: kept.update({name: out}))
            for name, module in net.named_children()
        ]
        x = published_input(data, case)
        logits, cells = net.scores(x)
        for hook in hooks:
            hook.remove()
        assert close(cells, data[f"out_{case}"])
        assert close(logits, data[f"logits_{case}"])
        for name in ("image_encoder", "image_decoder", "projection"):
            assert close(kept[name][:, :4], data[f"aux_{name}_{case}"])
        assert torch.equal(net(x), cells)


@pytest.mark.command
@torch.no_grad()
def test_counts_are_the_published_ones_at_any_size(published: tuple[CLIPEBC, NpzFile]) -> None:
    """Of 100x140 pixels the network counts 96x128; the cells beyond are 0."""
    counter, data = published
    for case, (height, width) in enumerate(((8, 12), (12, 16), (12, 17))):
        density = counter(images_of(data, case))
        assert density.shape == (1, 1, height, width)
        expected = data[f"out_{case}"]
        assert close(density[..., : expected.shape[2], : expected.shape[3]], expected)
        assert float(density.double().sum()) == pytest.approx(data["counts"][case], rel=1e-6)


@pytest.mark.command
@torch.no_grad()
def test_without_text_encoder_maps_are_the_same_bits(published: tuple[CLIPEBC, NpzFile]) -> None:
    counter, data = published
    lean = counter.without_text_encoder()
    count = sum(p.numel() for p in counter.parameters()) - sum(p.numel() for p in lean.parameters())
    assert count == 63_690_240
    images = images_of(data, 0)
    assert torch.equal(lean(images), counter(images))


def test_keys_shapes_and_numbers_are_the_published_ones(fixture: Fixture) -> None:
    data = fixture("CLIP_EBC")
    with torch.device("meta"):
        counter = models.create("clip_ebc")
    state = counter.net.state_dict()
    assert list(state) == [str(key) for key in data["keys"]]
    shapes = [",".join(map(str, value.shape)) for value in state.values()]
    assert shapes == [str(shape) for shape in data["shapes"]]
    trainable = sum(p.numel() for p in counter.parameters() if p.requires_grad)
    assert sum(p.numel() for p in counter.parameters()) == data["n_params"] == 135_465_313
    assert trainable == data["n_trainable"] == 71_775_073
    assert sum(value.numel() for value in state.values()) == data["n_state"]
    parts = ("image_encoder", "image_decoder", "projection", "text_encoder")
    numbers = [sum(p.numel() for p in getattr(counter.net, part).parameters()) for part in parts]
    assert numbers == [23_527_264, 46_149_632, 2_098_176, 63_690_240]


def test_prompts_and_anchors_are_the_published_ones(fixture: Fixture, narrow: None) -> None:
    data = fixture("CLIP_EBC")
    net = CLIPEBC(data="shanghaitech_b").net
    tokens = np.pad(np.array(net.tokens), ((0, 0), (0, 16 - len(net.tokens[0]))))
    np.testing.assert_array_equal(tokens, data["tokens"])
    np.testing.assert_array_equal(net.anchors, data["anchors"])
    assert CLIPEBC(anchors="middle").net.anchors == [0, 1, 2, 3, 4]
    assert CLIPEBC(data="jhu").net.anchors == [0, 1, 2, 3, 4.24058]
    # Digits take the place of the words; the rest of a sentence is the same.
    for word, number in zip(PROMPTS["word"], PROMPTS["number"], strict=True):
        changed = [
            place for place, ids in enumerate(zip(word, number, strict=True)) if len({*ids}) > 1
        ]
        assert len(changed) == 1
        assert number[changed[0]] in range(271, 276)


# --- the counter


@torch.no_grad()
def test_every_size_keeps_the_relation_of_map_and_image(counter: CLIPEBC) -> None:
    for side in range(15, 50):
        density = counter(torch.rand(1, 3, side, 33))
        rows, left_out = density.shape[2], 8 <= side % 16 <= 14
        assert density.shape[3] == 4
        assert rows == (side + 1) // 16 * 2 + left_out
        assert bool((density[:, :, -1] == 0).all()) == left_out
    with pytest.raises(ValueError, match="at least 15x15 pixels, got 14x33"):
        counter(torch.rand(1, 3, 14, 33))


@torch.no_grad()
def test_train_mode_returns_logits_too(counter: CLIPEBC, images: Tensor) -> None:
    x = counter.preprocess(images)
    assert isinstance(counter.net(x), Tensor)
    counter.train()
    logits, cells = counter.net(x)
    assert logits.shape == (2, 5, 6, 8)
    expected = (logits.softmax(1) * torch.tensor(counter.net.anchors).view(-1, 1, 1)).sum(1)
    torch.testing.assert_close(cells[:, 0], expected)
    assert counter(images).shape == (2, 1, 6, 8)


@pytest.mark.parametrize("axis", [2, 3])
def test_a_cell_sees_418_pixels(counter: CLIPEBC, axis: int) -> None:
    """As the class documents. With positive weights a pixel has a slope exactly if a cell sees it.

    Normalisation and softmax stay in their cell. ``measure_receptive_field`` cannot show it:
    through the outermost taps of seventeen blocks, each of which also lets its input pass, what
    comes from the field's rim is below its threshold.
    """
    net = counter.net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0 / parameter[0].numel() if parameter.ndim >= 2 else 1.0)
    shape = (864, 32) if axis == 2 else (32, 864)
    x = torch.ones(1, 3, *shape, dtype=torch.float64, requires_grad=True)
    cells = net.features(x).sum((1, 5 - axis))[0]
    reach = []
    for cell in (54, 55):  # one of each half of the encoder's grid
        (slope,) = torch.autograd.grad(cells[cell], x, retain_graph=True)
        seen = slope.sum((1, 5 - axis))[0].nonzero().flatten()
        reach += [8 * cell - int(seen[0]), int(seen[-1]) - (8 * cell + 7)]
    assert reach == [197, 204, 205, 196]
    assert 2 * max(reach) + 8 == 418


@torch.no_grad()
def test_windows_agree_at_multiples_of_16_only(counter: CLIPEBC) -> None:
    """Why no receptive field is declared: 8 pixels further, the encoder's grid is another."""
    counter.double()
    images = torch.rand(1, 3, 928, 32, dtype=torch.float64)
    column = counter(images)[0, 0, :, 1]
    centre = slice(56, 58)  # more than a field away from both ends of any window
    for start in (8, 16):
        window = counter(images[:, :, start:])[0, 0, :, 1]
        moved = slice(centre.start - start // 8, centre.stop - start // 8)
        difference = (window[moved] - column[centre]).abs().max()
        assert (difference < 1e-12) == (start == 16)


def test_counting_is_differentiable_to_the_image(counter: CLIPEBC, images: Tensor) -> None:
    images.requires_grad_()
    counter(images).sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    assert counter.net.text_encoder is not None
    assert all(p.grad is None for p in counter.net.text_encoder.parameters())


def test_loss_is_dace_on_what_the_network_returns(counter: CLIPEBC, images: Tensor) -> None:
    points = [torch.tensor([[3.0, 40.0], [60.5, 10.0], [61.0, 10.0]]), torch.zeros(0, 2)]
    target = torch.zeros(2, 1, 6, 8)
    target[0, 0, 5, 0], target[0, 0, 1, 7] = 1, 2
    for mode in (False, True):
        counter.train(mode)
        logits, density = counter.net.scores(counter.preprocess(images))
        for kind in dace.COUNT_LOSSES:
            counter.count_loss = kind
            expected = dace.dace_loss(logits, density, target, count_loss=kind, points=points)
            assert torch.equal(counter.loss(images, target, points=points), expected)


def test_a_step_of_descent_lowers_the_loss(counter: CLIPEBC, images: Tensor) -> None:
    target = torch.randint(0, 6, (2, 1, 6, 8)).float()
    loss = counter.loss(images, target)
    loss.backward()
    trained = [p for p in counter.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in trained)
    norm = sum(float((p.grad**2).sum()) for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter -= 1e-3 * loss.item() / norm * parameter.grad
    assert counter.loss(images, target) < loss


def test_bad_targets(counter: CLIPEBC, images: Tensor) -> None:
    target = torch.zeros(2, 1, 6, 8)
    with pytest.raises(ValueError, match=r"clip_ebc\.loss: target must be \[2, 1, 6, 8\]"):
        counter.loss(images, target[:, :, 1:])
    with pytest.raises(ValueError, match="not a smoothed density map"):
        counter.loss(images, target + 0.2)
    with pytest.raises(ValueError, match=r"multiples of 16 .* got 48x60"):
        counter.loss(images[..., :60], target[..., :7])
    counter.count_loss = "dmcount"
    with pytest.raises(ValueError, match="needs points"):
        counter.loss(images, target)


# --- the text encoder's features


@torch.no_grad()
def test_features_follow_the_text_encoder(counter: CLIPEBC, images: Tensor) -> None:
    """Whatever way its weights change: loaded, in place, past autograd, exchanged, moved."""
    encoder = counter.net.text_encoder
    assert encoder is not None
    seen = [counter(images)]

    def changed() -> bool:
        density = counter(images)
        different = all(not torch.equal(density, before) for before in seen)
        seen.append(density)
        return different

    counter.net.load_state_dict({**counter.net.state_dict(), **text_weights(counter, seed=7)})
    assert changed()
    encoder.ln_final.weight.mul_(torch.rand_like(encoder.ln_final.weight))
    assert changed()
    encoder.text_projection.data.add_(torch.rand_like(encoder.text_projection))
    assert changed()
    encoder.positional_embedding = nn.Parameter(torch.rand_like(encoder.positional_embedding))
    assert changed()
    twin = copy.deepcopy(counter)
    torch.testing.assert_close(twin.double().net.prompt_features().float(), features(counter))
    assert twin.net.prompt_features().dtype == torch.float64
    assert torch.equal(counter(images), seen[-1])


def text_weights(counter: CLIPEBC, seed: int) -> dict[str, Tensor]:
    state = randomise(copy.deepcopy(counter), seed).net.state_dict()
    return {key: value for key, value in state.items() if key.startswith("text_encoder.")}


def features(counter: CLIPEBC) -> Tensor:
    return counter.net.prompt_features()


@torch.no_grad()
def test_what_follows_a_prompts_end_does_not_matter(counter: CLIPEBC) -> None:
    """So nine tokens give what the published 77 give."""
    counter.double()
    encoder = counter.net.text_encoder
    assert encoder is not None
    short = torch.tensor(counter.net.tokens)
    padded = nn.functional.pad(short, (0, 77 - short.shape[1]))
    torch.testing.assert_close(encoder(padded), encoder(short), rtol=1e-12, atol=1e-12)
    numbers = CLIPEBC(prompt="number").double()
    numbers.net.load_state_dict(counter.net.state_dict())
    assert (features(numbers) - features(counter)).abs().max() > 1e-3


@pytest.mark.long
@torch.no_grad()
def test_features_follow_in_compiled_and_exported_counters(
    counter: CLIPEBC, images: Tensor
) -> None:
    compiled = torch.compile(counter, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), counter(images))
    counter.net.load_state_dict({**counter.net.state_dict(), **text_weights(counter, seed=7)})
    expected = counter(images)
    torch.testing.assert_close(compiled(images), expected)
    exported = torch.export.export(counter, (images,)).module()
    torch.testing.assert_close(exported(images), expected)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_weights_are_saved_and_loaded_bit_by_bit(
    counter: CLIPEBC, images: Tensor, tmp_path: Path, text_encoder: bool
) -> None:
    saved = counter if text_encoder else counter.without_text_encoder()
    models.save(saved, tmp_path / "own.npz", metadata={})
    loaded = models.load(tmp_path / "own.npz")
    assert loaded.options() == {**counter.options(), "text_encoder": text_encoder}
    assert torch.equal(loaded(images), counter(images))
    assert (
        models.load(tmp_path / "own.npz", count_loss="dmcount").options()["count_loss"] == "dmcount"
    )
    with pytest.raises(ValueError, match="was trained with data='shanghaitech_a', got data='jhu'"):
        models.load(tmp_path / "own.npz", data="jhu")


def test_without_text_encoder_shares_nothing_and_keeps_the_rest(
    counter: CLIPEBC, images: Tensor
) -> None:
    counter.train().double()
    lean = counter.without_text_encoder()
    assert lean.training
    assert lean.net.text_features.dtype == torch.float64
    assert not any(key.startswith("text_encoder") for key in lean.net.state_dict())
    assert all(p.requires_grad for p in lean.parameters())
    again = lean.without_text_encoder()
    storages = {p.untyped_storage().data_ptr() for p in (*counter.parameters(), *lean.buffers())}
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in again.parameters())
    assert torch.equal(again.eval()(images.double()), lean.eval()(images.double()))


def test_recognised_by_keys(counter: CLIPEBC) -> None:
    known = {"backbone": "resnet50"}
    assert CLIPEBC.recognise(counter.net.state_dict()) == {**known, "text_encoder": True}
    lean = counter.without_text_encoder()
    assert CLIPEBC.recognise(lean.net.state_dict()) == {**known, "text_encoder": False}
    assert CLIPEBC.recognise(models.create("mcnn").net.state_dict()) is None
    assert CLIPEBC.recognise(archive(counter)) is None


# --- OpenAI's archive


def archive(counter: CLIPEBC) -> dict[str, Tensor]:
    """The encoders' weights under the names and in the precision of OpenAI's RN50."""
    encoder = counter.net.text_encoder
    assert encoder is not None
    image = counter.net.image_encoder.state_dict()
    state = {f"visual.{key}": value for key, value in image.items()}
    state.update(encoder.state_dict())
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    state["visual.attnpool.positional_embedding"] = torch.zeros(50, 256).half()
    state["logit_scale"] = torch.tensor(4.6)
    for key, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        state[key] = torch.tensor(value)
    return state


@torch.no_grad()
def test_adopts_openais_encoders(counter: CLIPEBC, images: Tensor) -> None:
    state = archive(counter)
    fresh = CLIPEBC().eval()
    lean = fresh.without_text_encoder()
    temperature, decoder = fresh.net.logit_scale.clone(), fresh.net.projection.weight.clone()
    taken = fresh.adopt(state)
    assert taken is not None
    assert taken.startswith("CLIP's RN50: ")
    assert "parameters of its image encoder and " in taken
    for key, value in fresh.net.image_encoder.state_dict().items():
        assert torch.equal(value, state[f"visual.{key}"].to(value.dtype))
    assert torch.equal(fresh.net.logit_scale, temperature)
    assert torch.equal(fresh.net.projection.weight, decoder)
    assert lean.adopt(state) == taken
    assert torch.equal(lean(images), fresh(images))
    assert not any(p.requires_grad for p in fresh.net.text_encoder.parameters())


def test_archives_that_do_not_fit(counter: CLIPEBC) -> None:
    assert counter.adopt({"features.0.weight": torch.zeros(64, 3, 3, 3)}) is None
    before = {key: value.clone() for key, value in counter.net.state_dict().items()}
    state = archive(counter)
    cases = [
        ({"visual.class_embedding": torch.zeros(768)}, "unexpected visual.class_embedding"),
        (
            {"visual.conv1.weight": torch.zeros(768, 3, 32, 32)},
            r"wrong shape visual\.conv1\.weight",
        ),
        (
            {"ln_final.bias": torch.zeros(64, dtype=torch.int8)},
            "wrong type ln_final.bias torch.int8",
        ),
        ({"visual.layer1.0.conv1.weight": None}, r"missing visual\.layer1\.0\.conv1\.weight"),
    ]
    for changes, message in cases:
        changed = {k: v for k, v in {**state, **changes}.items() if v is not None}
        with pytest.raises(ValueError, match=f"not the weights of CLIP's RN50: {message}"):
            counter.adopt(changed)
    with pytest.raises(
        ValueError, match=r"missing visual.conv1.weight, .* more; unexpected visual.a"
    ):
        counter.adopt({"visual.a": torch.zeros(1)})
    assert all(torch.equal(value, before[k]) for k, value in counter.net.state_dict().items())


# --- options and recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"data": "ucf_cc_50"},
            "data must be 'shanghaitech_a' or 'shanghaitech_b' .* got 'ucf_cc_50'",
        ),
        ({"anchors": "mean"}, "anchors must be 'average' or 'middle', got 'mean'"),
        ({"prompt": 1}, "prompt must be 'word' or 'number', got 1"),
        ({"text_encoder": 1}, "text_encoder must be True or False, got 1"),
        ({"count_loss": "l1"}, "count_loss must be 'mae' or 'mse' or 'dmcount', got 'l1'"),
        ({"input": "gray255"}, "3 input channels"),
        ({"input": "rgb255", "mean": [0.5] * 3}, "rgb_standard"),
        ({"std": [0.1, 0.2]}, "std must be three finite numbers"),
        ({"scale": 0}, "scale must be a number above 0"),
        ({"reduction": 16}, "unknown option 'reduction'; known: backbone, data, anchors"),
    ],
)
def test_bad_options(narrow: None, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        models.create("clip_ebc", **options)
    assert "\n" not in str(caught.value)


def test_the_input_is_standardised_as_for_imagenet(counter: CLIPEBC) -> None:
    x = counter.preprocess(torch.full((1, 3, 16, 16), 0.5))[0, :, 0, 0]
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(x, expected)


def test_recipe_is_the_published_one(counter: CLIPEBC) -> None:
    recipe = counter.recipe()
    assert (recipe.epochs, recipe.batch, recipe.down_sampling) == (2600, 8, "sum")
    assert recipe.optimisers[0].lr == recipe.optimisers[0].weight_decay == 1e-4
    schedule = asdict(recipe.schedule)
    assert (schedule["warmup"], schedule["period"], schedule["factor"]) == (50, 5, 2.0)
    assert recipe.crop.size == (448, 448)
    assert recipe.density == {"": "dots"}  # the loss takes whole numbers of heads only
