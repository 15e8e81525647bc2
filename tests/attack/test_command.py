"""The command: what it writes, what it prints, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pycc import cli, models
from pycc.attack.__main__ import main

FAST = ["--steps", "2", "--sizes", "6", "0.2", "--no-pictures"]


class Called:
    """What a call of the command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """Runs the command in an empty folder; the arguments may be paths."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def run(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Called(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(call: Callable[..., Called], tmp_path: Path) -> Callable[..., str]:
    """Runs the command with bad input: one line on stderr, exit code 2, nothing left behind."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = call(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert done.err.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before
        return done.err

    return run


# What it does


def test_a_run(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("--data", folder, "--weights", weights, "--out", out, *FAST[:-1])
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["patch", "size", "MAE", "RMSE"]
    assert [line.split()[0] for line in lines[2:9]] == [
        "none", "grey", "noise", "apam", "grey", "noise", "apam",
    ]  # fmt: skip
    assert lines[-1] == f"run folder: {out}"
    summary = json.loads((out / "summary.json").read_text())
    assert [row["size"] for row in summary["rows"]] == [None, 6, 6, 6, 0.2, 0.2, 0.2]
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    stems = [f"000{i}-scene_{i}" for i in range(3)]
    attacked = {f"{s}.apam-{size}" for s in stems for size in ("6", "0.2")}
    clean = {f"{s}.none" for s in stems}
    assert names == (
        {"manifest.json", "results.jsonl", "summary.json"}
        | {f"patches/{name}.png" for name in attacked}
        | {f"images/{name}.png" for name in attacked | clean}
        | {f"maps/{name}.npz" for name in attacked | clean}
        | {f"pictures/{s}.png" for s in stems}
    )
    assert not list((tmp_path / "home").iterdir())


def test_without_attack(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("--attack", "none", "--data", folder, "--weights", weights, "--out", out)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[2:-2]] == ["none"]
    assert sorted(p.name for p in out.iterdir()) == [
        "manifest.json", "results.jsonl", "summary.json",
    ]  # fmt: skip


def test_the_counts_are_the_counters(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    from pycc import data

    out = tmp_path / "run"
    call("--attack", "none", "--data", folder, "--weights", weights, "--out", out, "--limit", 2)
    counter = models.load(weights)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line, sample in zip(lines, data.open(folder), strict=False):
        with torch.no_grad():
            assert line["count"] == pytest.approx(float(counter(sample.image[None]).sum()))
        assert line["truth"] == sample.count


def test_options_reach_the_counter(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    counts = []
    for option in ([], ["--option", "resize=4"]):
        out = tmp_path / f"run{len(counts)}"
        where = ["--model", "mcnn", "--weights", weights, "--data", folder, "--out", out]
        assert call("--attack", "none", *where, *option).code == 0
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        counts.append([row["count"] for row in rows])
    assert json.loads((out / "manifest.json").read_text())["settings"]["option"] == {"resize": 4}
    assert counts[0] == counts[1], "sides that are multiples of 4 are not resized"


def test_the_default_folder_is_named_by_the_time(call, folder: Path, weights: Path) -> None:
    assert call("--data", folder, "--weights", weights, "--limit", 1, *FAST).code == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("attack-2")
    assert (run / "summary.json").exists()


def test_every_field_of_the_attack_is_a_flag(call, folder: Path, weights: Path, tmp_path) -> None:
    out = tmp_path / "run"
    done = call(
        "--data", folder, "--weights", weights, "--out", out, "--limit", 1, "--no-save-images",
        "--sizes", 8, "--shape", "disc", "--steps", 3, "--step-size", 0.1, "--decay", "cosine",
        "--momentum", 0.5, "--smoothness", 0, "--objective", "target", "--target-count", 12,
        "--location", "given", "--top-left", 3, 4, "--transform", "none", "--sampling", "nested",
        "--beta", 0.5, "--factor", 5, "--seed", 7,
    )  # fmt: skip
    assert done.code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["attacks"] == [
        {
            "name": "apam", "size": 8, "shape": "disc", "steps": 3, "step_size": 0.1,
            "decay": "cosine", "momentum": 0.5, "smoothness": 0.0, "objective": "target",
            "target_count": 12.0, "location": "given", "top_left": [3, 4], "transform": "none",
            "sampling": "nested", "beta": 0.5, "factor": 5.0, "init": "noise",
        }
    ]  # fmt: skip
    assert manifest["seed"] == 7
    assert not (out / "images").exists()


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--data", "--model", "--weights", "--device", "--seed", "--out", "--resume",
                 "--limit", "--sizes", "--step-size", "--target-count", "--on-error"):  # fmt: skip
        assert flag in text


def test_points_outside_are_a_warning_that_counts_them(call, folder, weights, tmp_path) -> None:
    with (folder / "scene_1.csv").open("a") as file:
        file.write("\n64,3\n-1,5\n2,48.5")
    done = call("--data", folder, "--weights", weights, "--out", tmp_path / "run", *FAST)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: ")
    assert "scene_1.csv" in line
    assert "3 of 12" in line


def test_broken_items_are_skipped_when_asked(call, folder, weights, tmp_path) -> None:
    (folder / "scene_1.csv").write_text("nan,3")
    (folder / "scene_0.png").unlink()
    done = call(
        "--data", folder, "--weights", weights, "--out", tmp_path / "run", *FAST,
        "--on-error", "skip",
    )  # fmt: skip
    assert done.code == 0
    assert sum("warning: skipped" in line for line in done.err.splitlines()) == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images"] == 1


def test_without_matplotlib_it_says_so_and_goes_on(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "run"
    done = call("--data", folder, "--weights", weights, "--out", out, *FAST[:-1])
    assert done.code == 0
    assert done.err.splitlines() == [
        "note: no pictures: pictures need matplotlib: pip install 'pycc[plot]'"
    ]
    assert not (out / "pictures").exists()


def test_a_keyboard_interrupt_says_how_to_go_on(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    from pycc.run import Run

    append = Run.append

    def interrupt(run: Run, record: dict[str, Any]) -> None:
        append(run, record)
        if len(run.records) == 4:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    arguments = ["--data", folder, "--weights", weights, *FAST]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "append", interrupt)
        done = call(*arguments, "--out", out)
    assert done.code == 130
    assert done.err == f"stopped; continue with: python -m pycc.attack --resume {out}\n"
    resumed = call("--resume", out)
    assert resumed.code == 0
    whole = call(*arguments, "--out", tmp_path / "whole")
    assert resumed.out.replace(str(out), "") == whole.out.replace(str(tmp_path / "whole"), "")
    assert (out / "summary.json").read_bytes() == (tmp_path / "whole/summary.json").read_bytes()


def test_resume_takes_its_settings_from_the_manifest(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    call("--data", "crowd", "--weights", weights, "--out", out, *FAST)
    (out / "summary.json").unlink()
    monkeypatch.chdir(tmp_path / "home")
    same = ["--steps", 2, "--sizes", 6, 0.2, "--data", folder]
    assert call("--resume", out).code == 0
    assert call("--resume", out, *same).code == 0
    assert (out / "summary.json").exists()


# What is wrong with the input


def test_missing_data_folder(refused, weights: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in refused("--data", missing, "--weights", weights)


def test_data_that_is_a_file(refused, weights: Path) -> None:
    assert str(weights) in refused("--data", weights, "--weights", weights)


def test_image_without_annotation(refused, folder: Path, weights: Path) -> None:
    (folder / "scene_1.csv").unlink()
    said = refused("--data", folder, "--weights", weights)
    assert "scene_1.png: image without annotation" in said


def test_annotation_without_image(refused, folder: Path, weights: Path) -> None:
    (folder / "scene_1.png").unlink()
    said = refused("--data", folder, "--weights", weights)
    assert "scene_1.csv: annotation without image" in said


def shanghaitech(root: Path, annotation: dict[str, Any], *, cut: bool = False) -> Path:
    """A part of two images in the published layout; the second one's files may be broken."""
    from PIL import Image

    images, truths = root / "test_data" / "images", root / "test_data" / "ground-truth"
    images.mkdir(parents=True)
    truths.mkdir()
    whole = np.empty((1, 1), object)
    whole[0, 0] = np.array([[5.0, 6.0], [20.0, 30.0]])
    points = np.zeros((1, 1), dtype=[("location", object), ("number", object)])
    points[0, 0] = (whole[0, 0], 2.0)
    info = np.empty((1, 1), object)
    info[0, 0] = points
    for number, content in ((1, {"image_info": info}), (2, annotation or {"image_info": info})):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(images / f"IMG_{number}.jpg")
        savemat(truths / f"GT_IMG_{number}.mat", content)
    if cut:
        file = images / "IMG_2.jpg"
        file.write_bytes(file.read_bytes()[:1500])
    return root


def test_truncated_jpeg(refused, call, weights: Path, tmp_path: Path) -> None:
    root = shanghaitech(tmp_path / "part", {}, cut=True)
    arguments = ["--data", root, "--weights", weights, *FAST]
    assert "IMG_2.jpg: cannot read the image" in refused(*arguments)
    assert call(*arguments, "--limit", 1).code == 0, "the first image is whole"


def test_mat_without_points(refused, weights: Path, tmp_path: Path) -> None:
    root = shanghaitech(tmp_path / "part", {"something": np.zeros(3)})
    assert "GT_IMG_2.mat" in refused("--data", root, "--weights", weights, *FAST)


@pytest.mark.parametrize(("text", "says"), [("3,nan", "finite"), ("3,4\nabc,5", "abc")])
def test_csv_with_nan_or_text(text: str, says: str, refused, folder, weights) -> None:
    (folder / "scene_2.csv").write_text(text)
    said = refused("--data", folder, "--weights", weights, *FAST)
    assert "scene_2.csv" in said
    assert says in said


def test_weights_of_another_architecture(refused, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    state = dict(models.create("mcnn").net.state_dict())
    state["frontend.0.weight"] = state.pop("branch1.0.conv.weight")
    torch.save(state, file)
    said = refused("--data", folder, "--model", "mcnn", "--weights", file)
    assert "other.pth" in said
    assert "missing" in said
    assert "branch1.0.conv.weight" in said
    assert "unexpected" in said
    assert "frontend.0.weight" in said


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(refused, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb(tmp_path / "exploded")}, file)
    assert "bomb.pth" in refused("--data", folder, "--model", "mcnn", "--weights", file)
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert "bomb.pth" in refused("--data", folder, "--model", "mcnn", "--weights", file)
    assert not (tmp_path / "exploded").exists()


def test_h5_weights_without_h5py(refused, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "w.h5").write_bytes(b"")
    assert "pip install 'pycc[h5]'" in refused("--data", folder, "--weights", tmp_path / "w.h5")


def test_missing_weights(refused, folder: Path, tmp_path: Path) -> None:
    said = refused("--data", folder, "--weights", tmp_path / "none.pth")
    assert "none.pth" in said
    assert "--weights FILE" in refused("--data", folder, "--model", "mcnn")


def test_unknown_model(refused, folder: Path, weights: Path) -> None:
    said = refused("--data", folder, "--weights", weights, "--model", "crowdnet")
    assert "crowdnet" in said
    assert all(name in said for name in models.names())


def test_patch_larger_than_the_image(refused, folder: Path, weights: Path) -> None:
    said = refused("--data", folder, "--weights", weights, "--sizes", 20, 50)
    assert "scene_0: APAM: size 50 must give" in said
    assert "48x64" in said


def test_a_place_outside_the_image(refused, folder: Path, weights: Path) -> None:
    flags = ["--location", "given", "--top-left", 40, 0, "--sizes", 10]
    assert "inside the image" in refused("--data", folder, "--weights", weights, *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "-3"], "steps must be at least 0, got -3"),
        (["--steps", "many"], "--steps"),
        (["--sizes", "-5"], "size must be pixels above 0 or a share of (0,1], got -5"),
        (["--sizes", "0"], "size must be"),
        (["--sizes", "6", "6"], "must differ"),
        (["--sizes", "big"], "--sizes"),
        (["--step-size", "2"], "step_size must be in (0,1]"),
        (["--shape", "star"], "square"),
        (["--objective", "target"], "target_count"),
        (["--init", "nowhere.png"], "nowhere.png"),
        (["--attack", "unknown"], "apam"),
        (["--attack", "none", "--steps", "3"], "--steps"),
        (["--device", "abacus"], "--device"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--option", "resize"], "NAME=VALUE"),
        (["--option", "colour=1"], "colour"),
        (["--on-error", "ignore"], "skip"),
        (["--bogus"], "--bogus"),
        (["--pictures", "--no-save-images"], "--pictures"),
    ],
)
def test_bad_flags(flags: list[str], says: str, refused, folder: Path, weights: Path) -> None:
    assert says in refused("--data", folder, "--weights", weights, *flags)


@pytest.mark.parametrize("kind", ["below a file", "in /proc", "is a file", "holds files"])
def test_an_output_folder_that_cannot_be_had(kind, refused, folder, weights, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    out = {
        "below a file": tmp_path / "file" / "run",
        "in /proc": Path("/proc/run"),
        "is a file": tmp_path / "file",
        "holds files": folder,
    }[kind]
    said = refused("--data", folder, "--weights", weights, "--out", out, *FAST)
    assert str(out) in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "3"], "--steps was 2, got 3"),
        (["--sizes", "6"], "--sizes was [6, 0.2], got [6]"),
        (["--seed", "5"], "--seed was 0, got 5"),
        (["--attack", "none"], "--attack was 'apam', got 'none'"),
        (["--data", "synthetic"], "got 'synthetic'"),
        (["--out", "elsewhere"], "elsewhere"),
    ],
)
def test_resume_with_other_settings(flags, says, call, refused, folder, weights, tmp_path) -> None:
    out = tmp_path / "run"
    call("--data", folder, "--weights", weights, "--out", out, "--limit", 1, *FAST)
    assert says in refused("--resume", out, *flags)


def test_resume_with_other_data_or_weights(call, refused, folder, weights, tmp_path) -> None:
    out, file = tmp_path / "run", tmp_path / "mine.npz"
    file.write_bytes(weights.read_bytes())
    call("--data", folder, "--weights", file, "--out", out, "--limit", 1, *FAST)
    text = (folder / "scene_0.csv").read_text()
    (folder / "scene_0.csv").write_text(text + "\n5,5")
    assert "fingerprints.data was" in refused("--resume", out)
    (folder / "scene_0.csv").write_text(text)
    counter = models.load(file)
    counter.net.fuse[0].conv.bias.data += 0.001
    models.save(counter, file, passport={})
    assert "fingerprints.weights was" in refused("--resume", out)


def test_resume_of_no_run(refused, folder: Path, tmp_path: Path) -> None:
    assert "expected a run folder" in refused("--resume", folder)
    assert "expected a run folder" in refused("--resume", tmp_path / "nowhere")


def test_another_number_of_threads_is_a_warning(call, folder, weights, tmp_path) -> None:
    out = tmp_path / "run"
    call("--data", folder, "--weights", weights, "--out", out, "--limit", 1, *FAST)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["environment"]["threads"] = 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    done = call("--resume", out)
    assert done.code == 0
    assert "threads was 64, is 1" in done.err
    assert done.err.startswith("warning: ")


# As its own process


def process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pycc.attack", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_as_a_process(folder: Path, weights: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bad = process("--data", folder, "--weights", weights, "--steps", -1, cwd=home)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: APAM: steps must be at least 0, got -1\n"
    assert not list(home.iterdir())
    good = process("--data", folder, "--weights", weights, "--limit", 1, *FAST, cwd=home)
    assert (good.returncode, good.stderr) == (0, "")
    assert "apam" in good.stdout
