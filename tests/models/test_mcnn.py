"""MCNN against the published networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support.published import close, published_input, published_state
from torch.nn import functional

from pycc import models

Fixture = Callable[[str], NpzFile]


@pytest.mark.parametrize(
    ("file", "variant", "prefix", "parameters"),
    [("MCNN", "gray", "DME.", 127_953), ("MCNN_rgb", "rgb", "", 133_705)],
)
@torch.no_grad()
def test_output_is_the_published_networks(
    fixture: Fixture, file: str, variant: str, prefix: str, parameters: int
) -> None:
    data = fixture(file)
    counter = models.create("mcnn", variant=variant).eval()
    counter.net.load_state_dict(published_state(data, prefix), strict=True)
    assert sum(p.numel() for p in counter.net.parameters()) == parameters == data["n_params"]
    for case in range(len(data["seeds"])):
        x = published_input(data, case)
        assert close(counter.net(x), data[f"out_{case}"])
        columns = [counter.net.branch1(x), counter.net.branch2(x), counter.net.branch3(x)]
        if file == "MCNN":
            for index, column in enumerate(columns, start=1):
                assert close(column[:, :2], data[f"aux_branch{index}_{case}"])
            last = counter.net.fuse[0].conv
            assert close(last(torch.cat(columns, 1)), data[f"aux_pre_relu_{case}"])


@pytest.mark.parametrize("variant", ["gray", "rgb", "c3"])
@torch.no_grad()
def test_odd_sides_give_the_sides_halved_twice(variant: str) -> None:
    counter = models.create("mcnn", variant=variant)
    assert counter(torch.rand(2, 3, 70, 101)).shape == (2, 1, 17, 25)


def test_keys_are_the_published_ones() -> None:
    gray = list(models.create("mcnn").net.state_dict())
    assert len(gray) == 26
    assert gray[:2] == ["branch1.0.conv.weight", "branch1.0.conv.bias"]
    assert [key for key in gray if key.startswith("branch2") and key.endswith("weight")] == [
        f"branch2.{index}.conv.weight" for index in (0, 2, 4, 5)
    ]
    assert gray[-2:] == ["fuse.0.conv.weight", "fuse.0.conv.bias"]
    rgb = list(models.create("mcnn", variant="rgb").net.state_dict())
    assert [key for key in rgb if key.startswith("branch2") and key.endswith("weight")] == [
        f"branch2.{index}.weight" for index in (0, 3, 6, 8)
    ]
    assert rgb[-2:] == ["fuse.0.weight", "fuse.0.bias"]


def test_input_conventions() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    expected = {
        ("gray", "gray255"): [0.299 * 255],
        ("gray", "gray_half"): [(0.299 * 255 - 127.5) / 128],
        ("rgb", "rgb255"): [255.0, 0.0, 0.0],
        ("c3", "rgb_standard"): [(1 - 0.5) / 0.25, -0.5 / 0.25, -0.5 / 0.25],
    }
    for (variant, kind), values in expected.items():
        extra = {"mean": [0.5] * 3, "std": [0.25] * 3} if kind == "rgb_standard" else {}
        counter = models.create("mcnn", variant=variant, input=kind, **extra)
        x = counter.preprocess(red)
        assert x.shape == (1, len(values), 4, 4)
        torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(values))


def test_grey_is_that_of_pil() -> None:
    image = pytest.importorskip("PIL.Image")
    colours = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = np.asarray(image.fromarray(colours).convert("L"), dtype=np.float32)
    rgb = torch.from_numpy(colours).permute(2, 0, 1).unsqueeze(0) / 255.0
    grey = models.create("mcnn").preprocess(rgb)[0, 0]
    assert (grey - torch.from_numpy(expected)).abs().max() <= 0.51  # PIL rounds to 8 bits


def test_the_last_relu_is_an_option() -> None:
    state = models.create("mcnn").net.state_dict()
    state["fuse.0.conv.bias"] = torch.tensor([-5.0])
    outputs = []
    for final_relu in (True, False):
        counter = models.create("mcnn", final_relu=final_relu)
        counter.net.load_state_dict(state)
        outputs.append(counter(torch.zeros(1, 3, 8, 8)).detach())
    assert (outputs[0] == 0).all()
    torch.testing.assert_close(outputs[1], torch.full((1, 1, 2, 2), -5.0))


def test_c3_scale_undoes_enlargement_and_training_factor() -> None:
    counter = models.create("mcnn", variant="c3")
    images = torch.rand(1, 3, 32, 48)
    enlarged = functional.interpolate(counter.net(counter.preprocess(images)), scale_factor=4.0)
    count = counter(images).sum()
    torch.testing.assert_close(count, enlarged.sum() / 100)


@torch.no_grad()
def test_resize_samples_like_the_published_loader() -> None:
    """Half-pixel centres without anti-aliasing: a ramp of 10 columns becomes 8 known values."""
    counter = models.create("mcnn", resize=4)
    ramp = (torch.arange(10.0) / 255.0).view(1, 1, 1, 10).expand(1, 3, 9, 10)
    x = counter.preprocess(ramp)
    assert x.shape == (1, 1, 8, 8)
    expected = (torch.arange(8.0) + 0.5) * 10 / 8 - 0.5
    torch.testing.assert_close(x[0, 0, 3], expected, rtol=0, atol=1e-4)
    assert counter(torch.rand(1, 3, 70, 101)).shape == (1, 1, 17, 25)


def test_resize_leaves_multiples_of_four_alone_and_gives_up_the_receptive_field() -> None:
    counter = models.create("mcnn", resize=4)
    images = torch.rand(1, 3, 16, 20)
    assert torch.equal(counter.preprocess(images), models.create("mcnn").preprocess(images))
    assert counter.receptive_field is None
    assert counter.stride == 4
    assert models.create("mcnn").receptive_field == 72


@pytest.mark.parametrize("variant", ["gray", "rgb", "c3"])
def test_counting_is_differentiable_to_the_image(variant: str) -> None:
    counter = models.create("mcnn", variant=variant, resize=4)
    for parameter in counter.net.parameters():
        torch.nn.init.uniform_(parameter, 0.0, 0.01)  # no ReLU shuts
    images = torch.rand(1, 3, 33, 35, requires_grad=True)
    counter(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "grey"}, "variant must be 'gray' or 'rgb' or 'c3', got 'grey'"),
        ({"input": "gray1"}, "input must be"),
        ({"input": "rgb255"}, "1 input channels"),
        ({"resize": 8}, "resize must be None or 4, got 8"),
        ({"mean": [0.5] * 3}, "rgb_standard"),
        ({"variant": "c3", "std": [0.1, 0.2]}, "std must be three finite numbers"),
        ({"variant": "c3", "std": [0.1, 0.2, 0.0]}, "std must be positive"),
        ({"variant": ["gray"]}, r"variant must be .* got \['gray'\]"),
        ({"input": 255}, "input must be .* got 255"),
        ({"final_relu": "maybe"}, "final_relu must be True or False, got 'maybe'"),
        ({"final_relu": 1}, "final_relu must be True or False, got 1"),
        ({"resize": 4.0}, r"resize must be None or 4, got 4\.0"),
        ({"resize": [4]}, r"resize must be None or 4, got \[4\]"),
        ({"scale": "abc"}, "scale must be a number above 0 and at most 1e\\+06, got 'abc'"),
        ({"scale": [1.0]}, r"scale must be a number .* got \[1\.0\]"),
        ({"scale": True}, "scale must be a number .* got True"),
        ({"variant": "c3", "mean": "123"}, "mean must be three finite numbers, got '123'"),
        ({"variant": "c3", "mean": 0.5}, r"mean must be three finite numbers, got 0\.5"),
        ({"variant": "c3", "mean": [0.5, 0.5, None]}, "mean must be three finite numbers"),
        ({"variant": "c3", "std": [0.5, 0.5, float("nan")]}, "std must be three finite numbers"),
        ({"variant": "c3", "std": [0.5, 0.5, 10**400]}, "std must be three finite numbers"),
        ({"depth": 3}, "unknown option 'depth'; known: variant, input"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        models.create("mcnn", **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.long
@torch.no_grad()
def test_real_images_are_counted_plausibly(shared) -> None:
    """The published part-A network on real images: far better than always saying the mean."""
    image, loadmat = pytest.importorskip("PIL.Image"), pytest.importorskip("scipy.io").loadmat
    pytest.importorskip("h5py")
    counter = models.load(shared / "data/weights/mcnn_shtechA_660.h5")
    folder = shared / "data/shanghaitech/part_A/test_data"
    truth, predicted = [], []
    for index in range(11, 21):
        picture = np.array(image.open(folder / f"images/IMG_{index}.jpg").convert("RGB"))
        points = loadmat(folder / f"ground-truth/GT_IMG_{index}.mat")["image_info"]
        truth.append(len(points[0, 0][0, 0]["location"]))
        images = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0) / 255.0
        predicted.append(float(counter(images).sum()))
    error = np.abs(np.subtract(predicted, truth)).mean()
    spread = np.abs(np.subtract(truth, np.mean(truth))).mean()
    assert error < 0.5 * spread


def test_only_the_published_recipe_is_reported() -> None:
    assert models.create("mcnn").recipe().down_sampling == "linear4"
    for variant in ("rgb", "c3"):
        with pytest.raises(ValueError, match="mcnn: no published training recipe"):
            models.create("mcnn", variant=variant).recipe()


def test_c3_standardises_as_c3_does() -> None:
    conventions = [models.create(n, variant="c3").convention for n in ("mcnn", "cmtl", "csrnet")]
    assert conventions[0] == conventions[1] == conventions[2]
    assert conventions[0].mean == (0.410824894905, 0.370634973049, 0.359682112932)
