"""Training of the built-in weights."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.processes import HANG

from pycc import models
from pycc.data.synthetic import scene
from pycc.models.weights import read_weights
from pycc.train import builtin
from pycc.train.builtin import Recipe, Rendered, Training

SMALL = Recipe(batch=2, crop=64, scenes=2)


@pytest.fixture(scope="module")
def scenes() -> list[Rendered]:
    return [builtin.render(3, index, sigma=4.0) for index in range(2)]


def test_target_counts_the_heads(scenes: list[Rendered]) -> None:
    for index, rendered in enumerate(scenes):
        height, width = rendered.image.shape[1:]
        heads = scene(3, index, shape=(height, width)).count
        assert rendered.density.shape == (1, height // 4, width // 4)
        assert float(rendered.density.sum()) == pytest.approx(heads, rel=1e-5)
        assert rendered.image.dtype == torch.uint8


def test_batches_are_a_function_of_the_step(scenes: list[Rendered]) -> None:
    first = builtin.draw_batch(scenes, SMALL, 7)
    again = builtin.draw_batch(scenes, SMALL, 7)
    other = builtin.draw_batch(scenes, SMALL, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 3, 64, 64)
    assert first[1].shape == (2, 1, 16, 16)


def test_crops_and_mirrors_keep_image_and_target_together() -> None:
    """A scene whose target is the brightness of its image keeps them proportional."""
    values = np.random.Generator(np.random.PCG64(0)).integers(80, 160, (80, 96), dtype=np.uint8)
    cells = torch.from_numpy(values)
    image = cells.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, -1, -1)
    rendered = Rendered(image=image, density=cells.float().unsqueeze(0))
    for step in range(6):
        images, targets = builtin.draw_batch([rendered], SMALL, step)
        for picture, target in zip(images, targets, strict=True):
            blocks = torch.nn.functional.avg_pool2d(picture[0].unsqueeze(0), 4)
            pairs = torch.stack([blocks.flatten(), target.flatten()])
            assert float(torch.corrcoef(pairs)[0, 1]) > 0.999


def test_initialisation_ignores_grey_and_opens_the_last_relu() -> None:
    counter = models.create("mcnn")
    builtin.initialise(counter.net, 0)
    state = {key: value.clone() for key, value in counter.net.state_dict().items()}
    for branch in (1, 2, 3):
        first = state[f"branch{branch}.0.conv.weight"]
        assert first.sum((1, 2, 3)).abs().max() < 1e-6
        assert float(first.std()) * builtin._CONTRAST == pytest.approx(
            math.sqrt(2 / first[0].numel()), rel=0.1
        )
    with torch.no_grad():
        density = counter(scene(0, 0).image.unsqueeze(0))
    assert (density > 0).all()
    builtin.initialise(counter.net, 0)
    assert all(torch.equal(value, state[key]) for key, value in counter.net.state_dict().items())
    builtin.initialise(counter.net, 1)
    assert not torch.equal(
        counter.net.state_dict()["fuse.0.conv.weight"], state["fuse.0.conv.weight"]
    )


def test_first_kernels_take_smaller_steps() -> None:
    net = models.create("mcnn").net
    adam = builtin.optimiser(net, 0.5)
    rates = {id(p): group["lr"] for group in adam.param_groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    for key, parameter in net.named_parameters():
        first = key.split(".", 1)[1] == "0.conv.weight" and key.startswith("branch")
        assert rates[id(parameter)] == pytest.approx(0.5 / (builtin._CONTRAST if first else 1.0))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_loss_falls(scenes: list[Rendered], bfloat16: bool) -> None:
    counter = models.create("mcnn")
    builtin.initialise(counter.net, 0)
    adam = builtin.optimiser(counter.net, 1e-3)
    images, target = builtin.draw_batch(scenes, SMALL, 0)
    losses = [
        builtin.train_step(counter, adam, images, target, count_weight=0.1, bfloat16=bfloat16)
        for _ in range(12)
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_a_stopped_run_continues_as_if_it_had_not_been(
    scenes: list[Rendered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "time", SimpleNamespace(monotonic=lambda: 0.0))
    whole, stopped = Training(SMALL), Training(SMALL)
    for _ in range(4):
        whole.advance(scenes)
    for _ in range(2):
        stopped.advance(scenes)
    stopped.save(tmp_path / "checkpoint")
    continued = Training(SMALL)
    continued.restore(tmp_path / "checkpoint")
    for _ in range(2):
        continued.advance(scenes)
    assert continued.step == whole.step == 4
    for counter in ("counter", "average"):
        expected = getattr(whole, counter).state_dict()
        for key, value in getattr(continued, counter).state_dict().items():
            assert torch.equal(value, expected[key])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Training(SMALL).save(tmp_path / "checkpoint")
    other = Training(Recipe(batch=2, crop=64, scenes=2, sigma=5.0))
    with pytest.raises(ValueError, match=r"was made with sigma=4\.0, got 5\.0"):
        other.restore(tmp_path / "checkpoint")
    content = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="checkpoint is not a readable checkpoint"):
        other.restore(tmp_path / "checkpoint")


def test_validation_keeps_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(SMALL)
    errors = iter([0.4, 0.2, 0.3])
    monkeypatch.setattr(
        builtin, "evaluate", lambda *_: builtin.Report(1, 1.0, 1.0, 0.0, next(errors))
    )
    monkeypatch.setattr(builtin, "held_out", lambda *_: [scene(0, 0, shape=(64, 64))])
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(training.average.net.fuse[0].conv.bias, value)
        training.validate()
    assert training.best == 0.2
    assert training.best_state["fuse.0.conv.bias"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"minutes": 0.0}, "minutes must be positive, got 0.0"),
        ({"batch": -1}, "batch must be positive, got -1"),
        ({"test_scenes": 0}, "test_scenes must be positive"),
        ({"crop": 66}, "crop must be a multiple of 4 up to 320, got 66"),
        ({"crop": 512}, "got 512"),
        ({"bfloat16_share": 1.5}, "bfloat16_share must be in"),
        ({"minutes": math.inf}, "minutes must be positive, got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"sigma": 0.0}, r"sigma must be positive, got 0\.0"),
        ({"count_weight": -0.1}, "count_weight must be at least 0"),
    ],
)
def test_recipes_out_of_range(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**changed)


def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "w.npz")
    assert builtin.main(["--out", out, "--resume"]) == 2
    assert builtin.main(["--out", out, "--crop", "7"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "w.npz.checkpoint" in errors[0]
    assert "crop must be" in errors[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch 2", "arguments are required: --out"),
        ("--out w.npz --threads 0", "--threads must be 1…"),
        ("--out w.npz --threads 1000000", "got 1000000"),
        ("--out w.npz --threads two", "argument --threads: invalid int value: 'two'"),
        ("--out w.pth", "--out must be an .npz file, got w.pth"),
        ("--out w", "--out must be an .npz file, got w"),
        ("--out nowhere/w.npz", "--out needs a folder that exists, got nowhere/w.npz"),
        ("--out folder.npz", "--out must be a file, got the folder folder.npz"),
        ("--out w.npz --minutes 0", "minutes must be positive, got 0.0"),
        ("--out w.npz --minutes inf", "minutes must be positive, got inf"),
        ("--out w.npz --min 1", "unrecognized arguments: --min 1"),
    ],
)
def test_bad_usage_is_told_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    (tmp_path / "folder.npz").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtin, "run", lambda *_, **__: pytest.fail("it started"))
    threads = torch.get_num_threads()
    assert builtin.main(flags.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert message in told.err
    assert torch.get_num_threads() == threads


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    training = Training(SMALL)
    recipe = asdict(SMALL)
    for content in ([1], {"recipe": 3}, {}, {"recipe": recipe}, {"recipe": recipe, "counter": {}}):
        torch.save(content, tmp_path / "checkpoint")
        with pytest.raises(ValueError, match="is not a checkpoint of this training"):
            training.restore(tmp_path / "checkpoint")
    training.save(tmp_path / "checkpoint")
    whole = (tmp_path / "checkpoint").read_bytes()
    for place in range(0, 400, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "checkpoint").write_bytes(damaged)
        with contextlib.suppress(ValueError):
            training.restore(tmp_path / "checkpoint")


@pytest.mark.slow
def test_the_command_writes_weights_with_a_metadata(tmp_path: Path) -> None:
    out = tmp_path / "w.npz"
    flags = "--minutes 0.01 --scenes 2 --batch 1 --crop 64 --validation-scenes 1 --test-scenes 2"
    done = subprocess.run(
        [sys.executable, "-m", "pycc.train.builtin", "--out", str(out), *flags.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    assert "over 2 scenes" in done.stdout
    metadata = read_weights(out).metadata
    assert metadata["recipe"]["scenes"] == 2
    assert metadata["test"]["scenes"] == 2
    assert json.dumps(metadata)
    assert models.load(out).name == "mcnn"


def test_builtin_weights_count_unseen_scenes() -> None:
    """Mean relative error below 15 % on a dozen scenes of a seed that no training saw."""
    samples = builtin.held_out(20_011, "test", 12)
    report = builtin.evaluate(models.load("mcnn-synthetic"), samples)
    assert report.scenes == 12
    assert report.relative < 0.15
