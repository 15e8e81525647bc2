"""Presets: what each sets, what wins over it, and what an earlier run's preset leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pycc import attack
from pycc.commands.attack import Attack
from pycc.commands.attack_settings import AttackSettings, preset_text
from pycc.settings import values_of

FOLDER = ["--data", "/tmp"]


def settings_of(*argv: str, earlier: Mapping[str, Any] | None = None) -> AttackSettings:
    """The settings of a command line, which would be run, or resumed from ``earlier``."""
    command, earlier = Attack(), earlier or {}
    chosen = [*(command.as_arguments(earlier) if earlier else []), *argv]
    given = command.parser(chosen, "").given(argv)
    return command.completed(given, earlier, command.variants(chosen))[0]


def flags_of_run(*argv: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As a manifest would give them back."""
    return dict(json.loads(json.dumps(values_of(settings_of(*argv, earlier=earlier)))))


def some(values: Mapping[str, Any]) -> dict[str, Any]:
    names = ("objective", "steps", "step_size", "decay", "smoothness", "transform", "pgd_steps")
    names += ("max_images", "patch_size")
    return {name: values[name] for name in names if name in values}


PAPER = {
    "objective": "density", "steps": 100, "step_size": 2 / 255, "decay": "none",
    "smoothness": 0.01, "transform": "published", "pgd_steps": 10, "max_images": None,
    "patch_size": [0.02, 0.04, 0.08, 0.16],
}  # fmt: skip
STRONG = PAPER | {
    "objective": "target", "steps": 240, "step_size": 0.25, "decay": "cosine", "smoothness": 0.0,
    "transform": "none",
}  # fmt: skip
QUICK = PAPER | {
    "objective": "over", "steps": 200, "step_size": 64 / 255, "decay": "cosine", "pgd_steps": 4,
    "max_images": 4, "patch_size": [0.02, 0.04, 0.08],
}  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ([], STRONG),
        (["--preset", "paper"], PAPER),
        (["--preset", "quick"], QUICK),
        (["--steps", "7", "--objective", "under"], STRONG | {"steps": 7, "objective": "under"}),
        (["--preset", "quick", "--max-images", "9"], QUICK | {"max_images": 9}),
        (["--attack", "universal"], STRONG),
        (["--unannotated"], STRONG | {"objective": "over"}),
        (["--unannotated", "--target-count", "5"], STRONG),
        (["--unannotated", "--preset", "paper"], PAPER),
        (
            ["--attack", "query", "--preset", "quick"],
            {
                "objective": "over",
                "steps": 1000,
                "pgd_steps": 4,
                "max_images": 4,
                "patch_size": [0.02, 0.04, 0.08],
            },
        ),
        (["--attack", "clean"], {"pgd_steps": 10, "max_images": None}),
    ],
)
def test_what_a_preset_sets(argv: list[str], values: dict[str, Any]) -> None:
    assert some(flags_of_run(*FOLDER, *argv)) == values


@pytest.mark.parametrize("flags", [[], ["--unannotated"]])
@pytest.mark.parametrize("method", ["apam", "query", "universal"])
@pytest.mark.parametrize("preset", ["paper", "strong", "quick"])
def test_python_makes_the_attack_of_the_command(preset: str, method: str, flags: list[str]) -> None:
    argv = ["--attack", method, "--preset", preset, "--patch-size", "24", *flags]
    settings = settings_of(*FOLDER, *argv)
    same = attack.preset(preset, method, annotated=not flags, patch_size=24)
    assert settings.patches.attacks() == [same]
    evaluation = attack.presets[preset]
    assert settings.evaluation.pgd() == evaluation.pgd
    assert settings.images.max_images == evaluation.max_images


def test_a_preset_from_outside() -> None:
    mine = attack.Preset({"steps": 7, "decay": "cosine"}, attack.PGD(8 / 255, 3), max_images=2)
    with attack.presets.registered("mine", mine):
        set_to = {"steps": 7, "decay": "cosine", "pgd_steps": 3, "max_images": 2}
        earlier = flags_of_run(*FOLDER, "--preset", "mine")
        assert some(earlier) == PAPER | set_to
        assert earlier["pgd_epsilon"] == 8 / 255
        assert attack.preset("mine", steps=8) == attack.APAM(steps=8, decay="cosine")
        assert some(flags_of_run("--preset", "paper", earlier=earlier)) == PAPER
    with pytest.raises(ValueError, match="unknown preset 'mine'; known: paper, strong, quick"):
        attack.preset("mine")


@pytest.mark.parametrize("preset", ["paper", "strong", "quick"])
def test_few_of_the_built_in_scenes_unless_more_are_given(preset: str) -> None:
    assert settings_of("--preset", preset).images.max_images == 4
    assert settings_of("--preset", preset, "--max-images", "6").images.max_images == 6
    assert settings_of("--attack", "clean").images.max_images == 4


def test_a_clean_count_keeps_no_images_unless_pictures_are_requested() -> None:
    assert not settings_of("--attack", "clean").output.save_images
    assert not settings_of("--attack", "clean").output.pictures
    assert settings_of("--attack", "clean", "--save-images").output.save_images


def test_the_line_that_states_the_preset() -> None:
    assert preset_text(settings_of(*FOLDER, "--preset", "paper")) == "preset paper: the defaults"
    assert preset_text(settings_of(*FOLDER, "--attack", "query", "--steps", "5")) == (
        "preset strong: --objective target"
    )
    assert preset_text(settings_of("--preset", "quick", "--max-images", "2")) == (
        "preset quick: --objective over --steps 200 --step-size 0.251 --decay cosine "
        "--patch-size 0.02 0.04 0.08 --pgd-steps 4; given otherwise: --max-images 2"
    )


def test_an_earlier_run_keeps_its_attack_and_settings() -> None:
    earlier = flags_of_run(*FOLDER, "--attack", "query", "--share", "0.5", "--steps", "9")
    assert flags_of_run(earlier=earlier) == earlier
    assert flags_of_run("--share", "0.4", earlier=earlier) == {**earlier, "share": 0.4}


def test_another_preset_or_attack_than_the_earlier_runs_sets_what_it_does() -> None:
    earlier = flags_of_run(*FOLDER, "--steps", "9", "--patch-size", "20", "--seeds", "3")
    again = flags_of_run("--preset", "strong", earlier=earlier)
    assert again == earlier, "the same preset leaves what was given"
    paper = flags_of_run("--preset", "paper", earlier=earlier)
    assert some(paper) == PAPER | {"patch_size": [20]}, "sizes that were given stay"
    usual = flags_of_run(*FOLDER, "--preset", "quick")
    assert some(flags_of_run("--preset", "paper", earlier=usual))["patch_size"] == [
        *(0.02, 0.04, 0.08, 0.16)
    ]
    assert (paper["patch_size"], paper["seeds"], paper["data"]) == ([20], 3, "/tmp")
    query = flags_of_run("--attack", "query", earlier=earlier)
    assert query["steps"] == 1000, "those of apam are no queries"
    assert query["patch_size"] == [20]


def test_like(call, folder: Path, weights: Path, tmp_path: Path) -> None:
    flags = ["--data", folder, "--weights", weights, "--max-images", 1, "--no-checks"]
    flags += ["--attack", "query", "--steps", 4, "--patch-size", 8, "--no-pictures"]
    assert call(*flags, "--pgd-steps", 0, "--out", tmp_path / "one").code == 0
    assert call("--like", tmp_path / "one", "--share", 0.5, "--out", tmp_path / "two").code == 0
    one, two = (
        json.loads((tmp_path / name / "manifest.json").read_text())["settings"]["flags"]
        for name in ("one", "two")
    )
    assert two == {**one, "share": 0.5}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--attak", "apam"], "unknown flag --attak; did you mean '--attack'?"),
        (["--attack", "qery"], "got 'qery'; did you mean 'query'?"),
        (["--objective", "ovr"], "got 'ovr'; did you mean 'over'?"),
        (["--model", "mcn"], "got 'mcn'; did you mean 'mcnn'?"),
        (["--weights", "mcnn-synthtic"], "did you mean 'mcnn-synthetic'?"),
        (["--surrogates", "mcnn-synthtic"], "--surrogates: mcnn-synthtic does not exist; did you"),
        (["--data", "synthetc"], "did you mean 'synthetic'?"),
        (["--preset", "strng"], "did you mean 'strong'?"),
        (["--init", "nosie"], "did you mean 'noise'?"),
        (
            ["--attack", "clean", "--steps", "3"],
            "--steps: expected --attack apam or query or universal",
        ),
        (["--attack", "query", "--decay", "none"], "got --attack query"),
        (["--photo", "a", "b", "--steps", "3"], "--photo: expected no --steps beside it"),
        (["--print", "a", "--photo", "b", "c"], "--print: expected no --photo beside it"),
        (["--print", "a", "--widht-mm", "3"], "did you mean '--width-mm'?"),
        (["--print", "a"], "--width-mm is needed"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest(flags, says: str, refused) -> None:
    assert says in refused(*flags)
