"""Attacks and certificates on two processes: the results of one, whoever found them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import python, two_nodes
from torch import distributed

from pycc import data
from pycc.data import save_image
from pycc.ranks import Ranks, own_device, ranks
from pycc.runs import Run, sharded

FLAGS = ["--max-images", "3", "--threads", "1", "--no-pictures"]
ATTACK = [*FLAGS, "--preset", "paper", "--patch-size", "20", "40", "--steps", "3", "--seeds", "2",
          "--no-save-images", "--pgd-steps", "2", "--no-checks"]  # fmt: skip
CERTIFY = [*FLAGS, "--calibration-max-images", "2", "--patch-size", "40",
           "--method", "masked", "additive",
           "--attack", "--steps", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small scenes: three to train on and three to test on."""
    root = tmp_path_factory.mktemp("scenes")
    for split in ("train", "test"):
        (root / split).mkdir()
        for sample in data.open("synthetic", split=split, limit=3, shape=(144, 192)):
            save_image(root / split / f"{sample.name}.png", sample.image)
            points = json.dumps(sample.points.tolist())
            (root / split / f"{sample.name}.json").write_text(points)
    return root


def command(module: str, *argv: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    return python("-m", "pycc", module, *argv, processes=processes)


def results(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds", None)
    return sorted(records, key=lambda r: json.dumps(r, sort_keys=True))


@pytest.mark.long
@pytest.mark.parametrize(("module", "flags"), [("attack", ATTACK), ("certify", CERTIFY)])
def test_two_processes_find_what_one_finds(
    tmp_path: Path, scenes: Path, module: str, flags: list[str]
) -> None:
    flags = [*flags, "--data", str(scenes)]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = command(module, *flags, "--out", str(one))
    both = command(module, *flags, "--out", str(two), processes=2)
    assert both.returncode == alone.returncode, both.stderr
    assert (two / "summary.json").read_bytes() == (one / "summary.json").read_bytes()
    assert results(two) == results(one)
    assert both.stdout.count("run folder: ") == 1
    assert not (two / "ranks").exists()
    # Stopped with what two had found so far, and gone on with by one.
    lines = (two / "results.jsonl").read_text().splitlines(keepends=True)
    (two / "results.jsonl").write_text("".join(lines[: len(lines) // 2]))
    part = two / "ranks" / "1"
    part.mkdir(parents=True)
    (part / "results.jsonl").write_text("".join(lines[len(lines) // 2 : -1]) + lines[-1][:20])
    (two / "summary.json").unlink()
    again = command(module, "--resume", str(two), processes=2)
    assert again.returncode == alone.returncode, again.stderr
    assert (two / "summary.json").read_bytes() == (one / "summary.json").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(("module", "flags"), [("attack", ATTACK), ("certify", CERTIFY)])
def test_more_processes_than_images(
    tmp_path: Path, scenes: Path, module: str, flags: list[str]
) -> None:
    """The last one finds nothing to do and waits for the others."""
    one, three = tmp_path / "one", tmp_path / "three"
    few = [*flags, "--data", str(scenes), "--max-images", "1"]
    alone = command(module, *few, "--out", str(one))
    many = command(module, *few, "--out", str(three), processes=3)
    assert many.returncode == alone.returncode == 0, many.stderr
    assert (three / "summary.json").read_bytes() == (one / "summary.json").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(("module", "flags"), [("attack", ATTACK), ("certify", CERTIFY)])
def test_two_nodes_that_share_a_folder_find_what_one_finds(
    tmp_path: Path, scenes: Path, module: str, flags: list[str]
) -> None:
    flags = [*flags, "--data", str(scenes)]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = command(module, *flags, "--out", str(one))
    nodes = two_nodes("-m", "pycc", module, *flags, "--out", two)
    assert [node.returncode for node in nodes] == [alone.returncode] * 2, nodes
    assert (two / "summary.json").read_bytes() == (one / "summary.json").read_bytes()
    assert results(two) == results(one)
    assert [node.stdout.count("run folder: ") for node in nodes] == [1, 0]


@pytest.mark.long
def test_two_nodes_count_and_inspect_what_one_does(tmp_path: Path, scenes: Path) -> None:
    def counts(text: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(text)
        for row in (*content["rows"], content["totals"]):
            row.pop("seconds")
        return content

    flags = [str(scenes), "--json", "--threads", "1", "--overlay"]
    alone = command("count", *flags, tmp_path / "one")
    nodes = two_nodes("-m", "pycc", "count", *flags, tmp_path / "two")
    assert [node.returncode for node in nodes] == [alone.returncode] * 2 == [0, 0], nodes
    assert counts(nodes[0].stdout) == counts(alone.stdout)
    assert len(counts(alone.stdout)["rows"]) == 6
    assert nodes[1].stdout == ""
    pictures = [sorted((tmp_path / run).iterdir()) for run in ("one", "two")]
    for ours, theirs in zip(*pictures, strict=True):
        assert (ours.name, ours.read_bytes()) == (theirs.name, theirs.read_bytes())
    # Something broken in the share of each, and an image that is in both splits.
    names = sorted(file.stem for file in (scenes / "test").glob("*.png"))
    crowd = tmp_path / "crowd"
    shutil.copytree(scenes, crowd)
    for name in names[:2]:
        (crowd / "test" / f"{name}.png").write_bytes(b"no picture")
    shutil.copy(crowd / "test" / f"{names[2]}.png", crowd / "train" / "again.png")
    shutil.copy(crowd / "test" / f"{names[2]}.json", crowd / "train" / "again.json")
    alone = command("data", "inspect", crowd)
    nodes = two_nodes("-m", "pycc", "data", "inspect", crowd)
    assert alone.stdout.endswith("verdict: 2 broken, 1 more than once\n")
    assert nodes[0].stdout == alone.stdout
    assert (nodes[0].returncode, nodes[1].stdout) == (alone.returncode, "") == (1, "")


@pytest.mark.long
def test_two_processes_share_photographs(tmp_path: Path, scenes: Path) -> None:
    for folder, split in (("clean", "train"), ("attacked", "test")):
        (tmp_path / folder).mkdir()
        for n, file in enumerate(sorted((scenes / split).glob("*.png"))):
            shutil.copy(file, tmp_path / folder / f"{n}.png")
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--photo", tmp_path / "clean", tmp_path / "attacked", "--weights", "mcnn-synthetic",
             "--threads", "1"]  # fmt: skip
    alone = command("attack", *flags, "--out", one)
    both = command("attack", *flags, "--out", two, processes=2)
    assert (both.returncode, alone.returncode) == (0, 0), both.stderr
    assert both.stdout.replace(str(two), str(one)) == alone.stdout
    assert (two / "summary.json").read_bytes() == (one / "summary.json").read_bytes()
    assert results(two) == results(one)
    assert len(results(two)) == 3
    assert not (two / "ranks").exists()
    assert (two / "report.html").exists()


@pytest.mark.long
def test_the_first_process_alone_writes_what_is_not_shared(tmp_path: Path, scenes: Path) -> None:
    one, two, poisoned = (tmp_path / name for name in ("one", "two", "poisoned"))
    alone = command("data", "convert", scenes, one)
    both = command("data", "convert", scenes, two, processes=2)
    assert (both.returncode, alone.returncode) == (0, 0), both.stderr
    assert both.stdout.replace(str(two), str(one)) == alone.stdout
    files = [sorted(p for p in folder.rglob("*") if p.is_file()) for folder in (one, two)]
    for ours, theirs in zip(*files, strict=True):
        assert ours.relative_to(one) == theirs.relative_to(two)
        assert ours.read_bytes() == theirs.read_bytes()
    argv = ["backdoor", "poison", poisoned, "--data", scenes, "--strategy", "minus"]
    both = command(*argv, processes=2)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("poisoned in train: ") == 1
    # It ends as the first process does, with one message.
    both = command(*argv, processes=2)
    assert both.returncode != 0
    errors = [line for line in both.stderr.splitlines() if line.startswith("error: ")]
    assert len([line for line in errors if "another process of this run" not in line]) == 1


@pytest.mark.long
def test_many_processes_need_a_folder_to_meet_in() -> None:
    found = command("attack", *ATTACK, processes=2)
    assert found.returncode != 0
    assert "torchrun: processes meet in a run folder, give --out" in found.stderr


def test_shares_are_gathered_in_order() -> None:
    items = list(range(7))
    shares = [Ranks(rank, 3).share(items) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert Ranks().gathered(items) == items
    assert Ranks().first
    assert not Ranks(1, 2).first
    Ranks().wait()


def test_one_process_writes_its_run_itself(tmp_path: Path) -> None:
    def opened() -> Run:
        return Run.create(tmp_path / "run", {}, key=("n",))

    with sharded(opened, tmp_path / "run", Ranks(), ("n",)) as shards:
        shards.mine.append({"n": 1})
        shards.merge()
        assert shards.main is shards.mine
    assert (tmp_path / "run" / "results.jsonl").read_text() == '{"n": 1}\n'
    several = sharded(opened, None, Ranks(0, 2), ("n",))
    with pytest.raises(ValueError, match="several processes need a run folder"), several:
        pass


def test_results_have_an_order_of_their_keys() -> None:
    runs = [Run.create(None, {}, key=("index", "size", "name")) for _ in range(2)]
    records = [
        {"index": 1, "size": None, "name": "a"},
        {"index": 0, "size": 20, "name": "b"},
        {"index": 0, "size": 0.5, "name": None},
        {"index": 10, "size": None, "name": None},
        {"index": 2, "size": 20, "name": "a"},
    ]
    for run, some in zip(runs, (records, records[::-1]), strict=True):
        run.include(some)
        run.include(some)  # known already
    assert runs[0].ordered() == runs[1].ordered()
    assert [r["index"] for r in runs[0].ordered()] == [0, 0, 1, 2, 10]


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device(torch.device("cuda")) == torch.device("cuda", 3)
    assert own_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert own_device(torch.device("cuda")) == torch.device("cuda", 3)
    with pytest.raises(ValueError, match=r"each process needs a GPU of its own.*got cuda:1"):
        own_device(torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="got process 4 and 3 GPUs"):
        own_device(torch.device("cuda"))


def test_processes_on_gpus_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device, and the one that they talk over, before anything is made on one."""
    calls: list[tuple[str, object]] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("current", device)))
    monkeypatch.setattr(
        distributed, "init_process_group",
        lambda backend, **options: calls.append((backend, options["device_id"])),
    )  # fmt: skip
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: calls.append(("end", None)))
    own = torch.device("cuda", 1)
    with ranks(own) as processes:
        assert processes == Ranks(1, 2)
    assert calls == [("current", own), ("nccl", own), ("end", None)]


def test_a_lost_process_is_told_and_other_errors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **options: None)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    for text in (
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
        "recv, timeout, Connection reset by peer",
    ):
        with (
            pytest.raises(ChildProcessError, match="torchrun: another process of this run ended"),
            ranks(torch.device("cpu")),
        ):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes differ"), ranks(torch.device("cpu")):
        raise RuntimeError("shapes differ")


def test_one_process_maps_by_itself_and_agrees_with_itself() -> None:
    assert list(Ranks().mapped(str, [1, 2, 3])) == ["1", "2", "3"]
    assert Ranks().agreed({"a": 1}) == {"a": 1}
