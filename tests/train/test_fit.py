"""The trainer: it learns, stops, resumes to the same bits, and keeps what was good."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.scenes import QUICK, changed, counter, same, scenes, state
from torch import Tensor, nn

from pycc.models import CounterModel, load, wrap
from pycc.ranks import Ranks
from pycc.runs import files, fingerprint, read_records
from pycc.train import CountErrors, TrainConfig, TrainSummary, checkpoint, fit
from pycc.train.config import resolved
from pycc.train.held import split
from pycc.train.items import Items
from pycc.train.step import Stepper
from pycc.types import Sample

pytestmark = pytest.mark.command


def test_it_learns(tmp_path: Path) -> None:
    model = counter()
    log = fit(model, scenes(), changed(QUICK, epochs=60), out=tmp_path)
    held = [row.errors.mae for row in log.validations]
    losses = [row.loss for row in log.epochs]
    assert losses[-1] < 0.5 * losses[0]
    assert min(held) < 0.6 * held[0]
    assert log.summary.validation.mae == min(held)
    assert held[log.summary.best_epoch] == log.summary.validation.mae
    assert not model.training


@pytest.mark.long
@pytest.mark.parametrize(
    "plan",
    [
        QUICK,
        changed(QUICK, ema=0.9, accumulate=2),
        changed(QUICK, recipe="ablation", k=200, warmup=1),
        changed(QUICK, recipe="certified", patch_size=8, warmup=1),
    ],
    ids=["plain", "ema", "ablation", "certified"],
)
@pytest.mark.parametrize("where", [2, 4, 5])
def test_stopped_anywhere_and_resumed_it_has_the_same_bits(
    tmp_path: Path, plan: TrainConfig, where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: what layers draw is the same too. 6 training images, 4 batches an epoch."""
    uninterrupted = counter(dropout=0.3)
    fit(uninterrupted, scenes(), plan, out=tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, label: str) -> None:
        if done == where:
            raise StoppedError

    part = counter(dropout=0.3)
    out = tmp_path / "part"
    every = changed(plan, every_minutes=1e-9)
    fit_whole = fit(counter(dropout=0.3), scenes(), every, out=tmp_path / "every")
    with pytest.raises(StoppedError):
        fit(part, scenes(), every, out=out, progress=stop)
    torch.rand(5)  # the global generator is elsewhere now
    again = counter(dropout=0.3)
    log = fit(again, scenes(), every, out=out, resume=True)
    assert same(state(again), state(uninterrupted))
    assert log.summary == fit_whole.summary
    strip = [{k: v for k, v in r.items() if "second" not in k} for r in log.records]
    expected = fit_whole.records
    assert strip == [{k: v for k, v in r.items() if "second" not in k} for r in expected]


@pytest.mark.parametrize("recipe", ["plain", "ablation"])
def test_in_memory_it_is_the_same_training(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no file is written."""
    plan = changed(QUICK, recipe=recipe, k=200, warmup=1)
    kept, free = counter(), counter()
    on_disk = fit(kept, scenes(), plan, out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    in_memory = fit(free, scenes(), plan)
    assert same(state(free), state(kept))
    assert in_memory.summary == on_disk.summary
    assert in_memory.counter is free
    assert in_memory.folder is None
    assert [row.loss for row in in_memory.epochs] == [row.loss for row in on_disk.epochs]
    assert in_memory.validations == on_disk.validations
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert on_disk.records == read_records(tmp_path / "run")
    with pytest.raises(ValueError, match="resume needs the run folder as out"):
        fit(free, scenes(), plan, resume=True)


def test_mixed_precision_trains_as_single_precision_does() -> None:
    """But for bfloat16's eight bits; the weights stay in float32."""
    plan, start = changed(QUICK, epochs=1, lr=1e-4), state(counter())
    moves = []
    for amp in (False, True):
        model = counter()
        fit(model, scenes(), changed(plan, amp=amp))
        assert all(value.dtype == torch.float32 for value in model.parameters())
        moves.append(torch.cat([(v - start[n]).flatten() for n, v in state(model).items()]))
    assert not torch.equal(*moves)
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.95


def test_parts_of_a_batch_give_its_gradient(tmp_path: Path) -> None:
    models = [counter(), counter()]
    for model, parts in zip(models, (1, 3), strict=True):
        fit(model, scenes(), changed(QUICK, accumulate=parts), out=tmp_path / str(parts))
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Traced(Sequence[Sample]):
    """Scenes that write down which process reads which."""

    def __init__(self, file: Path) -> None:
        self.samples, self.file = scenes(), file

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if torch.utils.data.get_worker_info() is not None:
            with self.file.open("a") as file:
                file.write(f"{os.getpid()} {index}\n")
        return self.samples[index]


def test_workers_load_the_same_items_and_keep_what_they_have_read(tmp_path: Path) -> None:
    models, file = [counter(), counter()], tmp_path / "read"
    for model, workers in zip(models, (0, 2), strict=True):
        fit(model, Traced(file), changed(QUICK, workers=workers), out=tmp_path / str(workers))
    assert same(state(models[0]), state(models[1]))
    read = file.read_text().splitlines()
    assert len(set(read)) == len(read)  # none reads an image twice, in all three epochs
    assert len({line.split()[0] for line in read}) == 2


class Breaking(Sequence[Sample]):
    """Scenes of which one cannot be loaded by another process."""

    def __init__(self, how: str) -> None:
        self.samples, self.how = scenes(), how

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if index == 3 and torch.utils.data.get_worker_info() is not None:
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("scene-3: a broken image")
        return self.samples[index]


@pytest.mark.parametrize(
    ("how", "kind", "problem"),
    [
        ("dies", ChildProcessError, "train: a process that loads images died: .*checkpoint"),
        ("raises", ValueError, "^scene-3: a broken image$"),
    ],
)
def test_a_worker_that_fails_is_reported(
    tmp_path: Path, how: str, kind: type[Exception], problem: str
) -> None:
    plan = changed(QUICK, workers=1, validation_share=0.0)
    with pytest.raises(kind, match=problem):
        fit(counter(), Breaking(how), plan, out=tmp_path)
    # Nothing is lost: the run goes on without other processes, to where it would have come.
    alone, uninterrupted = counter(), counter()
    fit(alone, Breaking(how), changed(plan, workers=0), out=tmp_path, resume=True)
    fit(uninterrupted, scenes(), changed(plan, workers=0), out=tmp_path / "whole")
    assert same(state(alone), state(uninterrupted))


def test_processes_drop_something_else_each() -> None:
    """Layers that draw are keyed by the process too; the same process draws the same again."""
    drawn = []
    items = Items(scenes(), [0], resolved(QUICK, counter(), ""), 4, seed=0)
    for rank in (0, 1, 0):
        model = counter(dropout=0.5)
        stepper = Stepper(model, QUICK, 3, Ranks(), None)
        stepper.ranks = Ranks(rank, 2)
        monkey = pytest.MonkeyPatch()
        monkey.setattr(Ranks, "gathered", lambda self, part: [*part, *part])
        stepper.gradient(0, 0, 2, [items[0, 0]])
        monkey.undo()
        drawn.append(model.net[4].weight.grad.clone())
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def normalised() -> CounterModel:
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 1), nn.Softplus()
    )
    return wrap(net, stride=4, receptive_field=8)


def test_batch_normalisation_in_parts_is_reported(tmp_path: Path) -> None:
    plan = changed(QUICK, epochs=1, batch=4)
    fit(normalised(), scenes(), plan, out=tmp_path / "one")  # warnings are errors here
    fit(counter(), scenes(), changed(plan, accumulate=2), out=tmp_path / "none")
    problem = (
        r"the counter normalises by batches, and a batch of 4 is computed in 2 parts \(1 processes"
    )
    with pytest.warns(UserWarning, match=problem):
        fit(normalised(), scenes(), changed(plan, accumulate=2), out=tmp_path / "two")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_a_training_has_the_same_bits_again(tmp_path: Path) -> None:
    """Convolutions of several sizes, whose fastest algorithms add in any order."""
    plan = changed(QUICK, crop="128x160", lr=1e-6, epochs=2, recipe="ablation", k=500, warmup=1)
    results = []
    for run in ("first", "second"):
        model = load("mcnn-synthetic").to("cuda")
        log = fit(model, scenes(6, (192, 256)), plan, out=tmp_path / run)
        results.append((state(model), log.summary))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_early_stopping(tmp_path: Path) -> None:
    plan = changed(QUICK, epochs=50, patience=2, lr=1e-9)
    log = fit(counter(), scenes(), plan, out=tmp_path)
    assert log.summary.stopped_early
    assert log.summary.epochs < 50


def test_no_image_validates_and_trains() -> None:
    training, held = split(scenes(10), 0.3, seed=4)
    assert len(held) == 3
    assert sorted(training + held) == list(range(10))
    assert split(scenes(10), 0.3, seed=5)[1] != held
    assert split(scenes(10), 0.0, seed=4) == (list(range(10)), [])


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = changed(QUICK, every_minutes=1e-9)
    sizes: list[int] = []
    written = files.write_all

    def full(descriptor: int, data: bytes) -> None:
        if len(data) > 10_000:
            sizes.append(len(data))
            if len(sizes) == 3:
                written(descriptor, data[:100])
                raise OSError(errno.ENOSPC, "No space left on device")
        written(descriptor, data)

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(OSError, match="No space left"):
        fit(counter(), scenes(), plan, out=tmp_path)
    assert not list(tmp_path.glob(".*.part"))
    monkeypatch.setattr(files, "write_all", written)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["state"]["batch"] == 2
    uninterrupted = counter()
    fit(uninterrupted, scenes(), plan, out=tmp_path / "whole")
    again = counter()
    fit(again, scenes(), plan, out=tmp_path, resume=True)
    assert same(state(again), state(uninterrupted))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    fit(counter(), scenes(), QUICK, out=tmp_path)
    with pytest.raises(ValueError, match=r"settings\.config\.lr was 0\.01, is 0\.1"):
        fit(counter(), scenes(), changed(QUICK, lr=0.1), out=tmp_path, resume=True)
    other = counter()
    torch.nn.init.zeros_(other.net[4].weight)
    with pytest.raises(ValueError, match=r"fingerprints\.weights changed"):
        fit(other, scenes(), QUICK, out=tmp_path, resume=True)
    fit(counter(), scenes(), changed(QUICK, every_minutes=9.0), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"fingerprints\.data\.images was 8, is 9"):
        fit(counter(), scenes(9), QUICK, out=tmp_path, resume=True)
    (tmp_path / checkpoint.NAME).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        fit(counter(), scenes(), QUICK, out=tmp_path, resume=True)


def test_a_lack_of_memory_is_no_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    (tmp_path / checkpoint.NAME).write_bytes(b"a checkpoint")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError, match="no room"):
        checkpoint.load(tmp_path, {})


def test_a_run_that_goes_on_before_its_first_checkpoint_is_the_same_training(
    tmp_path: Path,
) -> None:
    def stop(done: int, total: int, label: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(counter(), scenes(), QUICK, out=tmp_path, progress=stop)
    assert not (tmp_path / checkpoint.NAME).exists()
    with pytest.raises(ValueError, match=r"settings\.config\.lr was 0\.01, is 0\.1"):
        fit(counter(), scenes(), changed(QUICK, lr=0.1), out=tmp_path, resume=True)
    again, uninterrupted = counter(), counter()
    fit(again, scenes(), QUICK, out=tmp_path, resume=True)
    fit(uninterrupted, scenes(), QUICK, out=tmp_path / "whole")
    assert same(state(again), state(uninterrupted))


def test_time_that_a_stopped_run_took_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a second with each call."""
    clock = iter(range(10_000))
    monkeypatch.setattr(
        "pycc.train.loop.time", SimpleNamespace(monotonic=lambda: float(next(clock)))
    )
    plan = changed(QUICK, every_minutes=1e-9, epochs=1)
    seconds = fit(counter(), scenes(), plan, out=tmp_path / "whole").epochs[0].seconds

    def stop(done: int, total: int, label: str) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(counter(), scenes(), plan, out=tmp_path / "part", progress=stop)
    part = fit(counter(), scenes(), plan, out=tmp_path / "part", resume=True).epochs[0]
    assert part.seconds == pytest.approx(seconds, abs=1.0)
    assert part.images_per_second == 12 / part.seconds


def test_a_wrapped_network_leaves_its_state_dict(tmp_path: Path) -> None:
    model = counter()
    fit(model, scenes(), changed(QUICK, epochs=1), out=tmp_path)
    kept = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert same(kept, model.net.state_dict())
    assert not (tmp_path / "weights.npz").exists()


def test_the_recipe_states_what_is_averaged_and_clipped(tmp_path: Path) -> None:
    from pycc import models

    plan = changed(QUICK, epochs=1)
    for config, ema, clip in ((plan, 0.995, 1.0), (changed(plan, ema=0.5, clip=3.0), 0.5, 3.0)):
        out = tmp_path / str(ema)
        fit(models.create("narrow"), scenes(), config, out=out)
        kept = json.loads((out / "manifest.json").read_text())["settings"]["config"]
        assert (kept["ema"], kept["clip"]) == (ema, clip)


def test_a_run_is_kept_in_its_folder(tmp_path: Path) -> None:
    from pycc import models

    torch.manual_seed(1)  # of some fresh ones the last ReLU is shut on all scenes
    model = models.create("mcnn")
    start = fingerprint(model.net.state_dict().items())
    seen: list[dict[str, Tensor]] = []

    def measure(best: CounterModel, summary: TrainSummary) -> dict[str, CountErrors]:
        assert not best.training
        seen.append(state(best))
        return {"plain": CountErrors(3.5, 4.0, -1.0, images=summary.epochs)}

    log = fit(
        model, scenes(4), changed(QUICK, epochs=1, lr=1e-6), out=tmp_path, seed=3, measure=measure
    )
    loaded = models.load(tmp_path / "weights.npz")
    assert same(loaded.net.state_dict(), model.net.state_dict())
    assert same(seen[0], state(model))
    errors = {"mae": 3.5, "rmse": 4.0, "bias": -1.0, "images": 1}
    assert loaded.metadata["test"] == {"plain": errors}
    assert log.summary.test == {"plain": CountErrors(**errors)}
    assert json.loads((tmp_path / "summary.json").read_text()) == log.summary.json()
    assert loaded.metadata.items() >= log.metadata.items()
    assert loaded.metadata["seed"] == 3
    assert loaded.metadata["start"] == start
    assert 0 < loaded.metadata["hours"] < 1
    assert loaded.metadata["config"]["crop"] == "32x32"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["settings"]["config"]["lr"] == 1e-6
    assert {r["kind"] for r in read_records(tmp_path)} == {"train", "validation"}


@pytest.mark.parametrize(
    ("samples", "plan", "message"),
    [
        ([], QUICK, "samples must be at least one, got none"),
        (scenes(4, heads=0)[:1], changed(QUICK, validation_share=0.0), "all images are without"),
        (scenes(1), QUICK, "1 images are too few to hold 1 back"),
        (
            scenes(4),
            changed(QUICK, recipe="ablation"),
            "3 epochs leave none to the ablation recipe",
        ),
        (
            [*scenes(4), *scenes(1, (32, 40))],
            changed(QUICK, recipe="ablation", k=2000, warmup=1),
            "scene-0: k must be at most the 1280 pixels of an image of 32x40, got 2000",
        ),
        (scenes(4), changed(QUICK, validation_share=0.0, patience=2), "no image validates"),
        (scenes(4), changed(QUICK, crop="30x32"), "multiples of 8 pixels, got 30x32"),
    ],
)
def test_bad_input(tmp_path: Path, samples: list, plan: TrainConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(counter(), samples, plan, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "magic"}, "recipe must be one of plain, adversarial, ablation"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"validation_share": 1.0}, r"validation_share must lie in \[0,1\), got 1.0"),
        ({"ema": 1.0}, r"ema must lie in \[0,1\)"),
        ({"cache": 0.0}, "cache must be above 0"),
        ({"crop": "32"}, "crop must be whole, quarter_sides, quadrant or HxW"),
        ({"fill": 2.0}, r"fill must lie in \[0,1\]"),
        ({"unit": "row"}, "unit must be pixel or element"),
    ],
)
def test_bad_plans(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_a_counter_that_learns_nothing_is_reported(tmp_path: Path) -> None:
    """A last ReLU that is shut everywhere passes no gradient on: an epoch of it changes nothing."""

    class Shut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1)
            nn.init.constant_(self.layer.bias, -100.0)

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(torch.relu(self.layer(images)), 4)

    model = wrap(Shut(), stride=4)
    before = state(model)
    with pytest.warns(UserWarning, match="nothing was learnt in epoch 1: every gradient was exac"):
        log = fit(model, scenes(), changed(QUICK, epochs=1), out=tmp_path / "shut")
    assert same(before, state(model))
    assert [row.gradient_norm for row in log.epochs] == [0.0]
    log = fit(counter(), scenes(), changed(QUICK, epochs=1), out=tmp_path / "open")
    assert log.epochs[0].gradient_norm > 0.0
