"""Backdoor commands on two processes of torchrun: the results of one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support import small
from support.backdoor import main
from support.processes import python, two_nodes

from pycc.runs import Record

SCENES = ["--scene", "64x96", "--threads", "1", "--no-pictures"]
ATTACK = ["--trigger", "blend", "--strategy", "minus", "--amount", "5"]
DEFENSES = ["fine-tuning", "fine-pruning", "nad", "anp", "blend-consistency"]
RUN = ["run", *SCENES, *ATTACK, "--model", small.NAME, "--max-images", "4", "--max-test-images",
       "3", "--fraction", "0.5", "--epochs", "1", "--batch", "2", "--defense-epochs", "1",
       "--defense", *DEFENSES, "--defense-option", "blend-consistency.blends=2",
       "--defense-option", "anp.steps=2", "--partitions", "3", "--assumed", "1",
       "--references", "3"]  # fmt: skip


def backdoor(*argv: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    return python(small.__file__, "backdoor", *argv, processes=processes)


def results(folder: Path) -> list[Record]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def check_same(one: Path, two: Path) -> None:
    """Two experiments have the same stages and results, but for the last bits of what is trained.

    Gradients are added in another order.
    """
    stages = [sorted(p.relative_to(f) for p in f.rglob("summary.json")) for f in (one, two)]
    assert stages[0] == stages[1]
    for ours, theirs in zip(results(one), results(two), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name == "count":
                assert theirs[name] == pytest.approx(value, rel=1e-4), ours
            elif name not in ("score", "threshold", "low", "high"):
                assert theirs[name] == value


@pytest.mark.long
def test_two_nodes_that_share_a_folder_find_what_one_finds(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    argv = ["run", *SCENES, *ATTACK, "--model", small.NAME, "--max-images", "4",
            "--max-test-images", "3", "--fraction", "0.5", "--epochs", "1", "--batch", "2",
            "--defense", "fine-tuning", "--defense-epochs", "1"]  # fmt: skip
    alone = backdoor(*argv, "--out", one)
    nodes = two_nodes(small.__file__, "backdoor", *argv, "--out", two)
    assert [node.returncode for node in (alone, *nodes)] == [0] * 3, nodes
    check_same(one, two)
    assert len(results(two)) > 0
    assert [node.stdout.count("run folder: ") for node in nodes] == [1, 0]


@pytest.mark.long
def test_two_processes_count_what_one_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", *SCENES, *ATTACK, "--max-images", "3", "--weights", "mcnn-synthetic",
            "--clean-weights", "mcnn-synthetic"]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*argv, "--out", str(one)]) == 0
    both = backdoor(*argv, "--out", two, processes=2)
    assert both.returncode == 0, both.stderr
    for name in ("results.jsonl", "summary.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert both.stdout.replace(str(two), str(one)) == capsys.readouterr().out


@pytest.mark.long
def test_two_processes_train_defend_and_measure_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = backdoor(*RUN, "--out", one)
    both = backdoor(*RUN, "--out", two, processes=2)
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    check_same(one, two)
    # What is missing is made again by one process, from the same counters: the same bytes.
    before = (two / "summary.json").read_bytes()
    lines = (two / "results.jsonl").read_text().splitlines(keepends=True)
    (two / "results.jsonl").write_text("".join(lines[:5]))
    again = backdoor("run", "--resume", two, processes=1)
    assert again.returncode == 0, again.stderr
    assert (two / "summary.json").read_bytes() == before


@pytest.mark.long
def test_two_processes_train_and_defend(tmp_path: Path) -> None:
    bad, better = tmp_path / "bad", tmp_path / "better"
    training = ["--scene", "64x96", "--threads", "1", "--max-images", "4", "--epochs", "1",
                "--batch", "2"]  # fmt: skip
    done = backdoor("train", *training, *ATTACK, "--model", small.NAME, "--out", bad, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: ") == 1
    weights = bad / "weights.npz"
    done = backdoor(
        "defend", "fine-pruning", *training, "--weights", weights, "--out", better, processes=2
    )
    assert done.returncode == 0, done.stderr
    after = better / "fine-pruning/weights.npz"
    assert done.stdout == f"weights: {after}\n"
    done = backdoor("evaluate", *SCENES, "--max-images", "1", "--weights", after, "--out",
                    tmp_path / "e", processes=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {r["defense"] for r in results(tmp_path / "e")} == {"fine-pruning"}


@pytest.mark.long
def test_two_processes_need_a_folder_to_meet_in() -> None:
    done = backdoor(*RUN, processes=2)
    assert done.returncode != 0
    assert "torchrun: processes meet in a run folder, give --out" in done.stderr
