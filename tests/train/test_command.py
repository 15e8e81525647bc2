"""``python -m pycc.train`` as users run it: alone, killed and resumed, and under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pycc import models
from pycc.train.__main__ import main

QUICK = ["--weights", "mcnn-synthetic", "--limit", "4", "--epochs", "2", "--crops", "2", "--batch",
         "2", "--lr", "1e-6", "--crop", "64x64", "--validation-share", "0.25", "--no-pictures",
         "--threads", "1"]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main([*argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as file:
        return {name: file[name] for name in file.files if file[name].dtype.kind == "f"}


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def test_train_and_load_the_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, _ = run(capsys, *QUICK, "--recipe", "ablation", "--k", "500", "--warmup", "1",
                        "--out", str(out))  # fmt: skip
    assert code == 0
    assert "val MAE" in text
    counter = models.load(out / "weights.npz")
    assert counter.passport["plan"]["k"] == 500
    assert counter.passport["recipe"]["kind"] == "ablation"


def test_adversarial_training_and_test_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    from pycc import data

    for sample in data.open("synthetic", split="test", limit=2, shape=(96, 128)):
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    code, text, _ = run(
        capsys, *QUICK, "--recipe", "adversarial", "--warmup", "1", "--decline", "1", "--patch",
        "16", "--patch-steps", "2", "--test-data", str(folder), "--test-split", "test",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert "test, plain: MAE" in text
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test"]["plain"]["images"] == 2


@pytest.mark.long
@pytest.mark.parametrize(("after", "processes"), [(1, 1), (3, 2)])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    tmp_path: Path, after: int, processes: int
) -> None:
    """SIGKILL, once the ``after``-th checkpoint is there; the process cleans up nothing.

    Two processes go on where one stopped, and end with the same weights but for the order of sums.
    """
    command = [
        sys.executable,
        "-m",
        "pycc.train",
        *QUICK,
        "--epochs",
        "3",
        "--every-minutes",
        "1e-9",
    ]
    whole, part = tmp_path / "whole", tmp_path / "part"
    subprocess.run([*command, "--out", str(whole)], check=True, env=environment())
    process = subprocess.Popen([*command, "--out", str(part)], env=environment())
    seen: set[float] = set()
    deadline = time.monotonic() + 120
    while len(seen) < after and process.poll() is None and time.monotonic() < deadline:
        file = part / "checkpoint.pt"
        if file.exists():
            seen.add(file.stat().st_mtime_ns)
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (part / "weights.npz").exists()
    if processes == 1:
        resume = [sys.executable, "-m", "pycc.train", "--resume", str(part)]
        subprocess.run(resume, check=True, env=environment())
    else:
        assert torchrun(processes, "--resume", str(part)).returncode == 0
    found, expected = weights(part), weights(whole)
    assert found.keys() == expected.keys()
    start = weights_of_start()
    for name, value in expected.items():
        change = 0.0 if processes == 1 else 0.02 * float(np.abs(value - start[name]).max()) + 1e-9
        np.testing.assert_allclose(found[name], value, rtol=0, atol=change)


def torchrun(processes: int, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(processes), "-m", "pycc.train", *argv],
        capture_output=True, text=True, env=environment(), timeout=300,
    )  # fmt: skip


@pytest.mark.long
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same global batch: the same weights but for the order of sums. And one goes on."""
    flags = [*QUICK, "--lr", "1e-5", "--batch", "3", "--validation-share", "0.5"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*flags, "--out", str(one)]) == 0
    found = torchrun(2, *flags, "--out", str(two))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("run folder") == 1
    expected, got = weights(one), weights(two)
    moved = weights_of_start()
    for name, value in expected.items():
        change = float(np.abs(value - moved[name]).max())
        np.testing.assert_allclose(got[name], value, rtol=0, atol=0.02 * change + 1e-9)
    records = [json.loads(line) for line in (two / "results.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["train", "validation"] * 2


def weights_of_start() -> dict[str, np.ndarray]:
    net = models.load("mcnn-synthetic").net
    return {name: value.numpy() for name, value in net.state_dict().items()}


@pytest.mark.long
def test_a_process_that_dies_fails_the_run_with_its_message(tmp_path: Path) -> None:
    found = torchrun(2, *QUICK, "--batch", "1", "--out", str(tmp_path / "run"))
    assert found.returncode != 0
    assert "a batch of 1 cannot be shared by 2 processes" in found.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "magic"], "invalid choice: 'magic'"),
        (["--data", "/nowhere"], "/nowhere: no such folder"),
        (["--weights", "none.pth"], "no such file"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--option", "speed=3"], "unknown option 'speed'"),
        (["--resume", "nowhere"], "nowhere"),
        (["--density", "magic", "--validation-share", "0"], "magic"),
        (["--down-sampling", "cubic8"], "gives cells of 8 pixels, the counter's have 4"),
        (["--limit", "1"], "too few to hold 1 back"),
    ],
)
def test_bad_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str
) -> None:
    out = [] if "--resume" in argv else ["--out", str(tmp_path / "run")]
    quick = [] if "--resume" in argv else QUICK
    code, text, err = run(capsys, *quick, *argv, *out)
    assert (code, text) == (2, "")
    assert message in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, *QUICK, "--lr", "1e30", "--out", str(tmp_path / "run"))
    assert code == 1
    assert "not finite" in err
