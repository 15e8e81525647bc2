"""``pycc train`` as users run it: alone, killed and resumed, and under torchrun."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import socket

import numpy as np
import pytest
from support.deep import two_depths
from support.processes import HANG, dying, environment, kill, python
from torch import Tensor

from pycc import commands, data, defense, models
from pycc.commands.progress import TerminalProgress
from pycc.commands.train import Train, command
from pycc.models.mcnn import MCNN
from pycc.train.config import RECIPES, TrainConfig
from pycc.train.held import measured, split

STEPS = ["--weights", "mcnn-synthetic", "--epochs", "2", "--crops", "2", "--batch", "2",
         "--lr", "1e-6", "--crop", "64x64", "--validation-share", "0.25", "--no-pictures",
         "--threads", "1"]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    return commands.main("train", argv)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main([*argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as file:
        return {name: file[name] for name in file.files if file[name].dtype.kind == "f"}


def images(folder: Path, number: int, split: str = "test") -> Path:
    """A folder of small scenes as PNG, with their heads."""
    folder.mkdir()
    for sample in data.open("synthetic", split=split, limit=number, shape=(96, 128)):
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    return folder


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small training images."""
    return images(tmp_path_factory.mktemp("data") / "scenes", 4, "train")


@pytest.fixture
def quick(training: Path) -> list[str]:
    """Flags of a training on them that takes no time."""
    return ["--data", str(training), *STEPS]


def test_train_and_load_the_weights(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, text, _ = run(capsys, *quick, "--recipe", "ablation", "--k", "500", "--warmup", "1",
                        "--out", str(out))  # fmt: skip
    assert code == 0
    assert "val MAE" in text
    counter = models.load(out / "weights.npz")
    assert counter.metadata["config"]["k"] == 500
    assert counter.metadata["recipe"]["kind"] == "ablation"


def test_the_bit_depth_of_pictures(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Trained and tested on 8 bits in 16 as on the same values in 8."""
    trained = []
    for folder in two_depths(images(tmp_path / "scenes", 4)):
        out = tmp_path / f"run-{folder.name}"
        flags = [*quick, "--data", str(folder), "--bit-depth", "8", "--out", str(out)]
        code, _, err = run(capsys, *flags)
        assert (code, err) == (0, "")
        trained.append(weights(out))
    assert all(np.array_equal(trained[0][name], trained[1][name]) for name in trained[0])
    flags += ["--out", str(tmp_path / "other"), "--max-image-pixels", "12287"]
    code, _, err = run(capsys, *flags)
    assert code == 2
    assert "max_image_pixels=12288 (--max-image-pixels 12288) reads it" in err


def test_ablation_is_tested_without_and_with_it(
    quick: list[str], training: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the weights that are left, with the mean colour that was trained with."""
    few, out = images(tmp_path / "few", 2), tmp_path / "run"
    code, text, _ = run(
        capsys, *quick, "--recipe", "ablation", "--k", "2000", "--warmup", "0", "--epochs", "1",
        "--test-data", str(few), "--test-split", "test", "--out", str(out),
    )  # fmt: skip
    assert code == 0
    assert "test, plain: MAE" in text
    assert "test, ablated: MAE" in text
    summary = json.loads((out / "summary.json").read_text())
    counter, tested = models.load(out / "weights.npz"), data.open(few, split="test")
    assert counter.metadata["test"] == summary["test"]
    assert counter.metadata["fill"] == summary["fill"]
    samples = data.open(training, split="train")
    indices = split(samples, 0.25, 0)[0]
    fill = data.mean_colour(samples[index].image for index in indices)
    assert summary["fill"] == pytest.approx(fill)
    shown = defense.ablated(counter, 2000, draws=20, fill=fill)
    assert summary["test"]["plain"] == measured(counter, tested).json()
    assert summary["test"]["ablated"] == measured(shown, tested).json()
    assert summary["test"]["ablated"] != summary["test"]["plain"]


def test_adversarial_training_and_test_images(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = images(tmp_path / "few", 2)
    code, text, _ = run(
        capsys, *quick, "--recipe", "adversarial", "--warmup", "0", "--decline", "1",
        "--patch-size", "16", "--patch-steps", "2", "--test-data", str(folder),
        "--test-split", "test", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert "test, plain: MAE" in text
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test"].keys() == {"plain"}
    assert summary["test"]["plain"]["images"] == 2
    assert summary["validation"].keys() == {"mae", "patched_mae", "images"}
    assert summary["best_epoch"] == 1


def test_what_no_result_depends_on_may_change_when_a_run_goes_on(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Stopped in its second epoch; the number of threads may change last bits, and stays here."""
    uninterrupted, out = tmp_path / "whole", tmp_path / "run"
    assert run(capsys, *quick, "--out", str(uninterrupted))[0] == 0

    def stop(bar: TerminalProgress, done: float, total: float, text: str, /) -> None:
        if done == total - 1:
            raise ValueError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TerminalProgress, "__call__", stop)
        assert run(capsys, *quick, "--out", str(out))[0] == 2
    assert not (out / "summary.json").exists()
    machine = ["--workers", "1", "--every-minutes", "7", "--threads", "1", "--device", "cpu"]
    code, _, err = run(capsys, "--resume", str(out), *machine)
    assert (code, err) == (0, "")
    ended, wanted = weights(out), weights(uninterrupted)
    assert ended.keys() == wanted.keys()
    assert all(np.array_equal(ended[name], wanted[name]) for name in ended)
    assert (out / "summary.json").read_bytes() == (uninterrupted / "summary.json").read_bytes()
    code, _, err = run(capsys, "--resume", str(out), "--lr", "1e-3")
    assert code == 2
    assert "a resumed run keeps its settings; --lr was 1e-06, got 0.001" in err


def test_fresh_parts_of_loaded_weights_are_drawn_by_the_seed(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``narrow`` has a head of its own over MCNN's columns; so a stopped run can go on."""
    flags = [*quick, "--model", "narrow", "--epochs", "1", "--crops", "1"]
    starts = []
    for name, seed in (("one", "0"), ("again", "0"), ("other", "1")):
        assert run(capsys, *flags, "--seed", seed, "--out", str(tmp_path / name))[0] == 0
        starts.append(models.load(tmp_path / name / "weights.npz").metadata["start"])
    assert starts[0] == starts[1] != starts[2]
    assert run(capsys, "--resume", str(tmp_path / "one"))[0] == 0


def test_test_images_are_not_trained_on(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A folder without splits is any split; an image may be in both of two folders."""
    folder = images(tmp_path / "few", 3)
    flags = [*quick, "--data", str(folder), "--out", str(tmp_path / "run")]
    code, _, err = run(capsys, *flags, "--test-split", "test")
    assert code == 2
    assert "all training images are among the test images; expected another --split" in err
    assert not (tmp_path / "run").exists()
    tested = tmp_path / "tested"
    tested.mkdir()
    for suffix in (".png", ".json"):
        source = next(folder.glob(f"*-0{suffix}"))
        (tested / f"same{suffix}").write_bytes(source.read_bytes())
    code, _, err = run(capsys, *flags, "--test-data", str(tested), "--test-split", "test")
    assert code == 0
    assert "warning: training image test-0-0 is test image same: left out" in err
    metadata = models.load(tmp_path / "run/weights.npz").metadata
    assert metadata["training_images"] == 1  # of three, one is tested and one validates


def test_built_in_scenes_need_no_other_flags() -> None:
    """Every recipe has epochs left, and a patch of the default size fits."""
    for recipe in RECIPES:
        settings, _ = command.completed({"recipe": recipe}, {}, {})
        assert settings.config.epochs is not None
        assert settings.config.epochs > sum(settings.config.phases)
        assert settings.images.max_images == 24
    settings, _ = command.completed({"crop": "whole"}, {}, {})
    assert settings.config.crops is None
    settings, _ = command.completed({"data": "somewhere"}, {}, {})
    assert (settings.config.epochs, settings.images.max_images) == (None, None)
    sample = data.open("synthetic", split="train", limit=1)[0]
    assert min(sample.image.shape[1:]) // 4 >= TrainConfig().patch_size


def test_help_is_short_and_help_all_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {flag: run(capsys, flag)[1] for flag in ("--help", "--help-all")}
    every = {f"--{name.replace('_', '-')}" for name in Train().parser([], "pycc train").flags}
    shown = {
        flag: {word for word in text.replace(",", " ").replace("[", " ").split() if word in every}
        for flag, text in texts.items()
    }
    assert shown["--help-all"] >= every
    for flag in ("--data", "--weights", "--recipe", "--epochs", "--max-images", "--resume"):
        assert flag in shown["--help"]
    for flag in ("--accumulate", "--outside-roi", "--unit", "--patch-steps", "--tensorboard"):
        assert flag not in shown["--help"]
    assert len(texts["--help"]) < 0.75 * len(texts["--help-all"])


def test_settings_of_an_earlier_run_are_defaults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also where they differ from the presets; a flag that is given wins."""
    first, second = tmp_path / "first", tmp_path / "second"
    flags = [*STEPS, "--epochs", "1", "--crops", "1", "--max-images", "2"]  # of built-in scenes
    assert run(capsys, *flags, "--out", str(first))[0] == 0
    flags = ["--like", str(first), "--seed", "5", "--out", str(second)]
    assert run(capsys, *flags)[0] == 0
    before, after = (
        json.loads((folder / "manifest.json").read_text())["settings"]["flags"]
        for folder in (first, second)
    )
    assert (before["max_images"], before["epochs"], before["lr"]) == (2, 1, 1e-6)
    assert after == {**before, "seed": 5}


@pytest.mark.long
def test_a_killed_process_of_two_is_reported_in_one_line_and_one_goes_on(
    quick: list[str], tmp_path: Path
) -> None:
    """The other process reports what happened, in one line; the checkpoint is as good as ever."""
    uninterrupted, part = tmp_path / "whole", tmp_path / "part"
    # Nothing validates: the weights compared are the last ones.
    flags = [*quick, "--epochs", "2", "--every-minutes", "1e-9", "--validation-share", "0"]
    assert main([*flags, "--out", str(uninterrupted)]) == 0
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command, env={**environment(), **ours, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=message, text=True,
        )
        for rank, (command, message) in enumerate((
            ([sys.executable, "-m", "pycc.train", *flags, "--out", str(part)], subprocess.PIPE),
            # The first process leaves a checkpoint after each batch, before it joins the next.
            (
                dying("pycc.train", *flags, "--out", part,
                      at="pycc.train.step.Stepper.gradient", times=3),
                subprocess.DEVNULL,
            ),
        ))
    ]  # fmt: skip
    assert processes[1].wait() == -signal.SIGKILL
    err = processes[0].communicate(timeout=HANG)[1]
    assert (part / "checkpoint.pt").exists()
    assert processes[0].returncode == 2, err
    message = "error: torchrun: another process of this run ended"
    assert [line.startswith(message) for line in err.splitlines()].count(True) == 1
    assert "Traceback" not in err
    assert main(["--resume", str(part)]) == 0
    assert_close(part, uninterrupted, 0.02)


def assert_close(folder: Path, expected: Path, share: float) -> None:
    """Weights are the same, but for a share of what training has changed."""
    start, got = weights_of_start(), weights(folder)
    for name, value in weights(expected).items():
        change = share * float(np.abs(value - start[name]).max()) + (1e-9 if share else 0.0)
        np.testing.assert_allclose(got[name], value, rtol=0, atol=change)


@pytest.mark.long
@pytest.mark.parametrize(("after", "processes"), [(1, 1), (3, 2)])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    quick: list[str], tmp_path: Path, after: int, processes: int
) -> None:
    """SIGKILL, once the ``after``-th checkpoint is there; the process cleans up nothing.

    Two processes go on where one stopped, and end with the same weights but for the order of sums.
    """
    flags = [*quick, "--epochs", "3", "--every-minutes", "1e-9"]
    uninterrupted, part = tmp_path / "whole", tmp_path / "part"
    command = [sys.executable, "-m", "pycc.train", *flags, "--out", str(uninterrupted)]
    subprocess.run(command, check=True, env=environment())
    kill("pycc.train", *flags, "--out", part, at="pycc.train.checkpoint.save", times=after,
         env=environment())  # fmt: skip
    assert not (part / "weights.npz").exists()
    if processes == 1:
        resume = [sys.executable, "-m", "pycc.train", "--resume", str(part)]
        subprocess.run(resume, check=True, env=environment())
    else:
        assert torchrun(processes, "--resume", str(part)).returncode == 0
    assert weights(part).keys() == weights(uninterrupted).keys()
    assert_close(part, uninterrupted, 0.0 if processes == 1 else 0.02)


def torchrun(processes: int, *argv: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "pycc.train", *argv, processes=processes)


@pytest.mark.long
def test_two_processes_train_as_one(quick: list[str], tmp_path: Path) -> None:
    """The same global batch: the same weights but for the order of sums. And one goes on."""
    flags = [*quick, "--lr", "1e-5", "--batch", "3", "--validation-share", "0.5"]
    alone, shared = tmp_path / "one", tmp_path / "two"
    assert main([*flags, "--out", str(alone)]) == 0
    ended = torchrun(2, *flags, "--out", str(shared))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("run folder") == 1
    assert_close(shared, alone, 0.02)
    records = [json.loads(line) for line in (shared / "results.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["train", "validation"] * 2


@pytest.mark.long
def test_what_two_processes_measure_is_what_they_leave(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of a counter with running statistics, of which each process saw other images."""
    few, out = images(tmp_path / "few", 3), tmp_path / "two"
    ended = torchrun(
        2, *quick, "--model", "narrow", "--test-data", str(few), "--test-split", "test",
        "--out", str(out),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((out / "summary.json").read_text())
    alone = measured(models.load(out / "weights.npz"), data.open(few, split="test"))
    assert summary["test"]["plain"]["mae"] == pytest.approx(alone.mae, rel=1e-5)


def weights_of_start() -> dict[str, np.ndarray]:
    net = models.load("mcnn-synthetic").net
    return {name: value.numpy() for name, value in net.state_dict().items()}


@pytest.mark.long
def test_a_process_that_dies_fails_the_run_with_its_message(
    quick: list[str], tmp_path: Path
) -> None:
    ended = torchrun(2, *quick, "--batch", "1", "--out", str(tmp_path / "run"))
    assert ended.returncode != 0
    assert "a batch of 1 cannot be shared by 2 processes" in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--recipe", "magic"],
            "expected one of plain, adversarial, ablation, certified, got 'magic'",
        ),
        (["--data", "/nowhere"], "/nowhere: no such file or folder"),
        (["--weights", "none.pth"], "no such file"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--option", "speed=3"], "unknown option 'speed'"),
        (["--resume", "nowhere"], "nowhere"),
        (["--density", "magic", "--validation-share", "0"], "magic"),
        (["--down-sampling", "cubic8"], "gives cells of 8 pixels, the counter's have 4"),
        (["--max-images", "1"], "too few to hold 1 back"),
        (["--recipe", "adversarial"], "2 epochs leave none to the adversarial recipe"),
        (
            ["--recipe", "adversarial", "--warmup", "0", "--decline", "0", "--patch-size", "65"],
            "crops of 64x64 of an image of 96x128 do not hold a patch of 65 pixels",
        ),
        (["--limit", "3"], "unknown flag --limit"),
        (["--patch-sise", "3"], "unknown flag --patch-sise; did you mean '--patch-size'"),
        (["--ablation-samples", "3"], "--ablation-samples: expected --recipe ablation beside"),
        (["--data", "synthetic", "--max-images", "2", "--test-split", "none"], "none"),
        (["--data", "synthetic", "--bit-depth", "12"], "for image files, synthetic is drawn"),
        (
            ["--validation-share", "0", "--validate-every", "2"],
            "--validate-every: expected --valid",
        ),
        (["--density", "dots", "--down-sampling", "linear4"], "linear4 is for density maps, and"),
        (["--test-data", "few"], "--test-data: expected --test-split beside"),
        (["--k", "45"], "--k: expected --recipe ablation beside it, got --recipe plain"),
        (["--warmup", "0"], "expected --recipe ablation or adversarial or certified beside it"),
        (["--recipe", "ablation", "--patch-steps", "3"], "expected --recipe adversarial"),
        (["--patience", "2", "--validation-share", "0"], "no image validates"),
        (["--threads", "0"], "--threads must be within [1, "),
        (["--crop", "100x100"], "multiples of 8 pixels, got 100x100"),
    ],
)
def test_bad_usage(
    quick: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    argv: list[str],
    message: str,
) -> None:
    out = [] if "--resume" in argv else ["--out", str(tmp_path / "run")]
    quick = [] if "--resume" in argv else quick
    code, text, err = run(capsys, *quick, *argv, *out)
    assert (code, text) == (2, "")
    assert message in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_reported_before_the_training(
    quick: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pycc.report.pictures.find_spec", lambda name: None)
    code, _, err = run(capsys, *quick, "--pictures", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "pictures need matplotlib: pip install 'pycc[plot]'" in err
    assert not (tmp_path / "run").exists()


def test_a_counter_that_needs_too_much_memory_names_the_image(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "few", 2)

    def fail(*_: object) -> Tensor:
        raise MemoryError("no room")

    monkeypatch.setattr(MCNN, "run", fail)
    flags = ["--data", str(folder), "--validation-share", "0", "--epochs", "1", "--crop", "whole"]
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "run"))
    assert code == 2
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert re.match(r"error: out of memory at image .*test-0-\d of 96x128 pixels: ", error)


def test_a_traceback_is_shown_only_on_request(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also for a loss that is not finite, which is expected to happen to users."""
    flags = [*quick, "--lr", "1e30"]
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "Traceback" not in err
    assert [line.startswith("error: ") for line in err.splitlines()] == [True]
    code, _, err = run(capsys, *flags, "--debug", "--out", str(tmp_path / "again"))
    assert code == 2
    assert "NotFiniteError" in err
