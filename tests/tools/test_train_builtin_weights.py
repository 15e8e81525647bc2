"""The script that makes the built-in weights."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pycc import models
from pycc.data.synthetic import scene
from pycc.models.weights import read_weights
from pycc.train.config import TrainConfig, resolved
from pycc.train.items import Items

FILE = Path(__file__).parents[2] / "tools" / "train_builtin_weights.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_builtin_weights", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_rendered_scenes_are_the_scenes(script: ModuleType, tmp_path: Path) -> None:
    """Bit for bit, rendered now or read from the cache, and none is one of the test scenes."""
    rendered = script.RenderedScenes(tmp_path, 3, seed=3)
    rendered.render()
    again = script.RenderedScenes(tmp_path, 3, seed=3)
    assert len(list(tmp_path.iterdir())) == 3
    for index, sample in enumerate(again):
        expected = scene(3, index, shape=script.SHAPES[index])
        assert sample.name == expected.name
        assert torch.equal(sample.image, expected.image)
        assert torch.equal(sample.points, expected.points)
    assert not torch.equal(again[0].image, scene(3, 0, shape=script.SHAPES[0], split="test").image)


def test_targets_hold_every_head(script: ModuleType, tmp_path: Path) -> None:
    """Also heads at the border: crops of the whole image sum to the number of its heads."""
    counter = script.SceneMCNN(0)
    samples = script.RenderedScenes(tmp_path, 3, seed=3)
    recipe = resolved(TrainConfig(crop="whole"), counter, "synthetic")
    items = Items(samples, range(3), recipe, counter.stride, seed=0)
    for number in range(3):
        assert float(items[0, number].target.sum()) == pytest.approx(samples[number].count, 1e-5)


def test_initialisation_ignores_grey_and_opens_the_last_relu(script: ModuleType) -> None:
    counter = script.SceneMCNN(0)
    state = counter.net.state_dict()
    for branch in (1, 2, 3):
        first = state[f"branch{branch}.0.conv.weight"]
        assert first.sum((1, 2, 3)).abs().max() < 1e-4
        assert float(first.std()) * 64 / 255 == pytest.approx(
            math.sqrt(2 / first[0].numel()), rel=0.1
        )
    with torch.no_grad():
        density = counter(scene(0, 0, shape=(240, 320)).image.unsqueeze(0))
    assert (density > 0).all()
    again, other = (script.SceneMCNN(seed).net.state_dict() for seed in (0, 1))
    assert all(torch.equal(value, state[key]) for key, value in again.items())
    assert not torch.equal(other["fuse.0.conv.weight"], state["fuse.0.conv.weight"])


def test_loss_weighs_cells_and_counts(script: ModuleType) -> None:
    counter = script.SceneMCNN(0).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        density = counter(images)
        assert float(counter.loss(images, density)) == 0.0
        # 0.01 people more in each of 256 cells; the count is off by 2.56.
        loss = float(counter.loss(images, density + 0.01))
    truth = density.sum((1, 2, 3)) + 2.56
    assert loss == pytest.approx(0.1 + 0.2 * float((2.56 / (truth + 10)).mean()), rel=1e-3)


def test_errors(script: ModuleType) -> None:
    class Half:
        stride, receptive_field = 4, 4

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 1, 16, 16), 15 / 256)

    scenes = [scene(0, index, shape=(64, 64), heads=heads) for index, heads in enumerate((10, 20))]
    heads = [sample.count for sample in scenes]
    assert heads == [10, 20]
    errors = script.errors_on(Half(), scenes, (64, 64))
    assert (errors.scenes, errors.mae, errors.rmse, errors.bias) == (2, 5.0, 5.0, 0.0)
    assert errors.relative == pytest.approx((5 / 10 + 5 / 20) / 2)


@pytest.mark.long
@pytest.mark.command
def test_a_stopped_training_ends_with_the_same_weights(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the published convention, and state their recipe and their errors."""
    monkeypatch.setattr(script, "VALIDATION", 1)
    monkeypatch.setattr(script, "SHAPES", ((256, 256),))
    monkeypatch.setattr(script, "TESTS", (((64, 96), 2),))
    flags = ["--scenes", "5", "--epochs", "2", "--cache", str(tmp_path / "cache")]
    script.main([*flags, "--out", str(tmp_path / "whole")])

    class Stopping(script.TerminalProgress):  # type: ignore[misc,name-defined]
        def __call__(self, done: float, total: float, text: str, /) -> None:
            if done == 2 and "epoch" in text:
                raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(script, "TerminalProgress", Stopping)
        with pytest.raises(InterruptedError):
            script.main([*flags, "--out", str(tmp_path / "part")])
    script.main([*flags, "--out", str(tmp_path / "part"), "--resume"])
    part, complete = (
        models.load(tmp_path / folder / "mcnn-synthetic.npz") for folder in ("part", "whole")
    )
    state = complete.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in part.net.state_dict().items())
    metadata = read_weights(tmp_path / "whole" / "mcnn-synthetic.npz").metadata
    assert metadata["options"]["input"] == "gray255"
    assert metadata["recipe"]["epochs"] == 2
    assert metadata["recipe"]["source"] == "tools/train_builtin_weights.py"
    assert metadata["test"][0]["scenes"] == 2
    samples = [scene(0, index, shape=(64, 96), split="test") for index in range(2)]
    errors = script.errors_on(complete, samples, (64, 96))
    assert metadata["test"][0]["mae"] == pytest.approx(errors.mae, rel=1e-4)
