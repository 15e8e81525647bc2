"""The command: what it writes and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from support.deep import two_depths
from support.processes import HANG, messages

import pycc
from pycc import models
from pycc.commands.progress import TerminalProgress
from pycc.data.export import export_samples

FAST = [
    "--steps", "2", "--patch-size", "6", "0.2", "--pgd-steps", "0", "--no-checks", "--no-pictures",
]  # fmt: skip


def test_a_run(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("--data", folder, "--weights", weights, "--out", out, *FAST[:-1])
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == (
        "preset strong: --objective target --step-size 0.25 --decay cosine --smoothness 0 "
        "--transform none; given otherwise: --steps 2"
    )
    del lines[0]
    assert lines[0].split()[:5] == ["patch", "patch", "size", "MAE", "95"]
    baselines = ["grey", "black", "noise", "crowd"]
    assert [line.split()[0] for line in lines[2:13]] == [
        "clean", *baselines, "apam", *baselines, "apam",
    ]  # fmt: skip
    assert lines[-1] == f"run folder: {out}"
    summary = json.loads((out / "summary.json").read_text())
    assert [row["patch_size"] for row in summary["rows"]] == [None, *[6] * 5, *[0.2] * 5]
    verdicts = {check["name"]: check["verdict"] for check in summary["checks"]}
    assert verdicts["loss on a plateau"] == "fail", "two steps do not converge"
    assert any(line.startswith("fail") for line in lines)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    stems = [f"000{i}-scene_{i}" for i in range(3)]
    attacked = {f"{s}.apam-{size}" for s in stems for size in ("6", "0.2")}
    clean = {f"{s}.clean" for s in stems}
    assert names == (
        {"manifest.json", "results.jsonl", "summary.json", "checks.json", "card.json"}
        | {"report.html"}
        | {f"patches/{name}.png" for name in attacked}
        | {f"images/{name}.png" for name in attacked | clean}
        | {f"maps/{name}.npz" for name in attacked | clean}
        | {f"pictures/{s}.png" for s in stems}
    )
    assert not list((tmp_path / "home").iterdir())


def counts(out: Path) -> list[float]:
    lines = (out / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["count"] for line in lines]


def test_the_bit_depth_of_pictures(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    eight, sixteen = two_depths(folder)
    flags = ["--attack", "clean", "--weights", weights, "--data"]
    for out, source, more in (
        ("usual", eight, []), ("scaled", sixteen, ["--bit-depth", 8]), ("dark", sixteen, []),
    ):  # fmt: skip
        done = call(*flags, source, *more, "--out", tmp_path / out)
        assert done.code == 0
        assert done.err.count("if its values have 8 bits") == (3 if out == "dark" else 0)
    assert counts(tmp_path / "scaled") == counts(tmp_path / "usual")
    assert counts(tmp_path / "dark") != counts(tmp_path / "usual")
    manifest = json.loads((tmp_path / "scaled" / "manifest.json").read_text())
    assert manifest["settings"]["flags"]["bit_depth"] == 8
    assert call("--resume", tmp_path / "scaled").code == 0
    done = call("--resume", tmp_path / "scaled", "--bit-depth", 9)
    assert done.code == 2
    assert "--bit-depth was 8, got 9" in done.err
    done = call(*flags, sixteen, "--max-image-pixels", 3071, "--out", tmp_path / "large")
    assert done.code == 2
    assert "max_image_pixels=3072 (--max-image-pixels 3072) reads it" in done.err
    done = call("--photo", eight, sixteen, "--weights", weights, "--bit-depth", 8,
                "--out", tmp_path / "photo")  # fmt: skip
    assert done.code == 0
    lines = (tmp_path / "photo" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["error_rate"] for line in lines] == [0.0] * 3


@pytest.mark.long
def test_without_data_the_built_in_scenes_and_counter_are_used(call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fast = ["--max-images", 1, "--steps", 3, "--patch-size", 0.04, "--no-pictures", "--no-checks"]
    assert call("--out", out, *fast).code == 0
    settings = json.loads((out / "manifest.json").read_text())["settings"]["flags"]
    assert settings["weights"] == "mcnn-synthetic"
    assert (settings["preset"], settings["objective"]) == ("strong", "target")
    rows = json.loads((out / "summary.json").read_text())["rows"]
    none, pgd, _, _, noise, apam = rows
    assert none["mae"] < 0.3 * none["mean_count"]
    assert pgd["mean_count"] > none["mean_count"]
    assert apam["mean_count"] > noise["mean_count"]


def test_the_papers_settings(call, folder, weights, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--preset", "paper", "--data", folder, "--weights", weights, *FAST]
    assert call(*flags, "--out", out).code == 0
    (first, _) = json.loads((out / "manifest.json").read_text())["settings"]["attacks"]
    assert (first["objective"], first["factor"], first["transform"]) == (
        "density", 10.0, "published",
    )  # fmt: skip
    assert first["step_size"] == 2 / 255
    assert (first["momentum"], first["smoothness"], first["decay"]) == (0.9, 0.01, "none")


def test_without_attack(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("--attack", "clean", "--data", folder, "--weights", weights, "--out", out)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[2:-2]] == ["clean"]
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json", "manifest.json", "report.html", "results.jsonl", "summary.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "also", "stands_beside"),
    [
        ("part_A", [], True),
        ("part_A", ["--unannotated"], False),
        ("part_A", ["--max-images", "1"], False),
        ("part_A", ["--ablate", "900", "--ablation-samples", "2", "--ablation-fill", "0.5"], False),
        ("part_B", [], False),
        ("crowd", [], False),
    ],
)
def test_published_errors_stand_beside_those_of_the_same_images(
    name, also, stands_beside, call, sample, mcnn_weights: Path, tmp_path: Path
) -> None:
    root = tmp_path / "part_A" / name
    export_samples({"test": [sample(0), sample(1)]}, root, layout="shanghaitech")
    done = call("--attack", "clean", "--data", root, "--weights", mcnn_weights, *also)
    assert done.code == 0
    assert ("\npublished: APAM" in done.out) == stands_beside


def test_the_counts_are_the_counters(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    from pycc import data

    out = tmp_path / "run"
    call(
        "--attack", "clean", "--data", folder, "--weights", weights, "--out", out, "--max-images", 2
    )
    counter = models.load(weights)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line, sample in zip(lines, data.open(folder), strict=False):
        with torch.no_grad():
            assert line["count"] == pytest.approx(float(counter(sample.image[None]).sum()))
        assert line["truth"] == sample.count


def test_options_reach_the_counter(call, folder: Path, mcnn_weights: Path, tmp_path: Path) -> None:
    counts = []
    for option in ([], ["--option", "resize=4"]):
        out = tmp_path / f"run{len(counts)}"
        where = ["--model", "mcnn", "--weights", mcnn_weights, "--data", folder, "--out", out]
        assert call("--attack", "clean", *where, *option).code == 0
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        counts.append([row["count"] for row in rows])
    assert json.loads((out / "manifest.json").read_text())["settings"]["flags"]["option"] == {
        "resize": 4
    }
    assert counts[0] == counts[1], "sides that are multiples of 4 are not resized"


def test_the_counter_of_ablated_images_is_attacked(call, folder, weights, tmp_path: Path) -> None:
    from pycc import data, defense

    out = tmp_path / "run"
    where = ["--data", folder, "--weights", weights, "--out", out, "--max-images", 1]
    flags = ["--ablate", 900, "--ablation-samples", 3, "--ablation-unit", "element"]
    assert call(*where, *flags, "--train-split", "test", *FAST).code == 0
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    samples = data.open(folder)
    fill = data.mean_colour(sample.image for sample in samples)
    counter = defense.ablated(models.load(weights), 900, draws=3, fill=fill, unit="element")
    with torch.no_grad():
        wanted = float(counter(samples[0].image[None]).sum())
    people = {(line["condition"], line["patch_size"]): line["count"] for line in lines}
    assert people["clean", None] == pytest.approx(wanted, rel=1e-5)
    assert people["apam", 0.2] > people["clean", None]
    assert json.loads((out / "manifest.json").read_text())["settings"]["fill"] == pytest.approx(
        fill
    )
    bad = call("--transfer", weights, weights, "--ablate", 5, "--out", tmp_path / "other")
    assert bad.code == 2
    assert "--ablate: expected one counter, with --weights, got --transfer" in bad.err
    bad = call("--weights", weights, "--ablation-samples", 5, "--out", tmp_path / "other")
    assert bad.code == 2
    assert "--ablation-samples: expected --ablate K beside it, got none" in bad.err


def test_the_default_folder_is_named_by_the_time(call, folder: Path, weights: Path) -> None:
    assert call("--data", folder, "--weights", weights, "--max-images", 1, *FAST).code == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("attack-2")
    assert (run / "summary.json").exists()


def test_every_field_of_the_attack_is_a_flag(call, folder: Path, weights: Path, tmp_path) -> None:
    out = tmp_path / "run"
    done = call(
        "--data", folder, "--weights", weights, "--out", out, "--max-images", 1, "--no-save-images",
        "--patch-size", 8, "--shape", "disc", "--steps", 3, "--step-size", 0.1, "--decay", "cosine",
        "--momentum", 0.5, "--smoothness", 0, "--objective", "target", "--target-count", 12,
        "--location", "given", "--top-left", 3, 4, "--transform", "none", "--sampling", "nested",
        "--beta", 0.5, "--factor", 5, "--seed", 7, "--optimiser", "adam", "--restarts", 2,
        "--eot-samples", 3, "--seeds", 2, "--pgd-steps", 2, "--pgd-epsilon", 0.02, "--no-checks",
    )  # fmt: skip
    assert done.code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["attacks"] == [
        {
            "name": "apam", "patch_size": 8, "shape": "disc", "steps": 3, "step_size": 0.1,
            "decay": "cosine", "momentum": 0.5, "smoothness": 0.0, "objective": "target",
            "target_count": 12.0, "location": "given", "top_left": [3, 4], "transform": "none",
            "sampling": "nested", "beta": 0.5, "factor": 5.0, "init": "noise",
            "optimiser": "adam", "restarts": 2, "eot_samples": 3,
        }
    ]  # fmt: skip
    assert (manifest["settings"]["seed"], manifest["settings"]["seeds"]) == (7, 2)
    assert manifest["settings"]["pgd"] == {"epsilon": 0.02, "steps": 2}
    assert not (out / "images").exists()


def test_help_shows_what_most_people_need(call) -> None:
    done = call("--help")
    assert (done.code, done.err) == (0, "")
    shown = [
        line.split()[0].strip(",") for line in done.out.splitlines() if line.startswith("  --")
    ]
    assert len(shown) <= 35
    for flag in ("--data", "--model", "--weights", "--device", "--seed", "--out", "--resume",
                 "--like", "--max-images", "--patch-size", "--step-size", "--target-count",
                 "--preset", "--surrogates", "--photo", "--print"):  # fmt: skip
        assert flag in shown
    everything = call("--help-all")
    assert everything.code == 0
    for flag in ("--on-error", "--momentum", "--eot-samples", "--ablation-samples", "--threads"):
        assert f"\n  {flag}" in everything.out
        assert flag not in done.out


@pytest.mark.parametrize(
    ("flags", "steps", "objective"),
    [
        ([], 240, "target"),
        (["--preset", "paper"], 100, "density"),
        (["--preset=quick"], 200, "over"),
        (["--attack", "query"], 1000, "target"),
    ],
)
def test_help_shows_the_defaults_of_the_preset(flags, steps, objective, call) -> None:
    text = " ".join(call(*flags, "--help").out.split())
    assert f"(default: {steps}) --objective" in text
    assert f"what the attacker wants (default: {objective})" in text


def test_points_outside_are_a_warning_that_counts_them(call, folder, weights) -> None:
    with (folder / "scene_1.csv").open("a") as file:
        file.write("\n64,3\n-1,5\n2,48.5")
    done = call("--attack", "clean", "--data", folder, "--weights", weights)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: ")
    assert "scene_1.csv" in line
    assert "3 of 12" in line


def test_broken_items_are_skipped_when_asked(call, folder, weights, tmp_path) -> None:
    (folder / "scene_1.csv").write_text("nan,3")
    (folder / "scene_0.png").unlink()
    done = call(
        "--attack", "clean", "--data", folder, "--weights", weights, "--out", tmp_path / "run",
        "--on-error", "skip",
    )  # fmt: skip
    assert done.code == 0
    assert sum("warning: skipped" in line for line in done.err.splitlines()) == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images"] == 1


def test_progress_is_reported_every_ten_seconds_and_is_no_message(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    """By a clock that goes on by six seconds whenever it is looked at."""
    seconds = count(0.0, 6.0)
    monkeypatch.setattr(TerminalProgress, "clock", staticmethod(lambda: next(seconds)))
    out = tmp_path / "run"
    done = call("--data", folder, "--weights", weights, "--out", out, "--max-images", 1, *FAST)
    assert done.code == 0
    lines = done.err.splitlines()
    # 1 clean, 2 sizes of 2 steps, a result and grey, black and noise: 13 looks, every other a line.
    assert all(" megapixels/s, 0:00:" in line for line in lines[:6])
    assert lines[5].startswith("9")
    assert lines[6:] == [f"100 %: check {number} of 8" for number in (1, 3, 5, 7)]
    assert messages(done.err) == []
    assert messages(f"note: no pictures\n{done.err}") == ["note: no pictures"]


def test_without_matplotlib_it_says_so_and_goes_on(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "run"
    flags = ["--data", folder, "--weights", weights, "--max-images", 1, *FAST[:-1]]
    done = call(*flags, "--out", out)
    assert done.code == 0
    assert done.err.splitlines() == [
        "note: no pictures: pictures need matplotlib: pip install 'pycc[plot]'"
    ]
    assert not (out / "pictures").exists()


def test_a_keyboard_interrupt_says_how_to_go_on(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    from pycc.runs import Run

    append = Run.append

    def interrupt(run: Run, record: dict[str, Any]) -> None:
        append(run, record)
        if len(run.records) == 4:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    arguments = ["--data", folder, "--weights", weights, "--max-images", 1, *FAST]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "append", interrupt)
        done = call(*arguments, "--out", out)
    assert done.code == 130
    assert done.err == f"stopped; continue with: pycc attack --resume {out}\n"
    resumed = call("--resume", out)
    assert resumed.code == 0
    unbroken = call(*arguments, "--out", tmp_path / "whole")
    assert resumed.out.replace(str(out), "") == unbroken.out.replace(str(tmp_path / "whole"), "")
    assert (out / "summary.json").read_bytes() == (tmp_path / "whole/summary.json").read_bytes()


def test_resume_takes_its_settings_from_the_manifest(
    call, folder, weights, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    call("--data", "crowd", "--weights", weights, "--max-images", 1, "--out", out, *FAST)
    (out / "summary.json").unlink()
    monkeypatch.chdir(tmp_path / "home")
    same = ["--steps", 2, "--patch-size", 6, 0.2, "--data", folder]
    assert call("--resume", out).code == 0
    assert call("--resume", out, *same).code == 0
    assert (out / "summary.json").exists()


# As its own process


def process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pycc.attack", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(pycc.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def test_as_a_process(folder: Path, mcnn_weights: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bad = process("--data", folder, "--weights", mcnn_weights, "--steps", -1, cwd=home)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: APAM: steps must be at least 0, got -1\n"
    assert not list(home.iterdir())
    good = process("--data", folder, "--weights", mcnn_weights, "--max-images", 1, *FAST, cwd=home)
    assert (good.returncode, messages(good.stderr)) == (0, [])
    assert "apam" in good.stdout
