"""A training's table, curves and TensorBoard files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycc.report import curves

RECORDS = [
    {"kind": "train", "epoch": 0, "loss": 2.5, "lr": 1e-3, "images_per_second": 4.0},
    {"kind": "validation", "epoch": 0, "mae": 30.0, "rmse": 41.0, "bias": -3.5, "images": 2},
    {"kind": "train", "epoch": 1, "loss": 0.5, "lr": 1e-4, "images_per_second": 5.0},
]


def test_a_table_of_epochs() -> None:
    summary = {
        "best_epoch": 0,
        "validation": {"mae": 30.0, "images": 2},
        "test": {"plain": {"mae": 12.0, "rmse": 20.0, "bias": 1.5, "images": 3}},
    }
    lines = curves.training_table(RECORDS, summary).splitlines()
    assert lines[2].split() == ["1", "2.5", "0.001", "4.0", "30.0", "41.0", "-3.5", "best"]
    assert lines[3].split() == ["2", "0.5", "0.0001", "5.0", "-", "-", "-"]
    assert "test, plain: MAE 12.0, RMSE 20.0, bias +1.5 over 3 images" in lines


def test_what_chooses_and_the_scenes_stand_in_the_table() -> None:
    validation = {**RECORDS[1], "epoch": 1, "mae": 33.0, "score": 45.5}
    one = {"mae": 12.0, "rmse": 20.0, "bias": 1.5, "images": 3}
    scenes = {"mae_by_group": {"S1": 10.0, "S2": 16.0}, "mae_over_groups": 13.0}
    summary = {
        "best_epoch": 1,
        "validation": {"mae": 33.0, "images": 2},
        "test": {"plain": {**one, **scenes}},
    }
    lines = curves.training_table([*RECORDS, validation], summary).splitlines()
    assert lines[0].split()[-2:] == ["bias", "score"]
    assert lines[2].split()[-4:] == ["30.0", "41.0", "-3.5", "-"]
    assert lines[3].split()[-5:] == ["33.0", "41.0", "-3.5", "45.5", "best"]
    assert "test, plain: MAE of S1 10.0, S2 16.0; their mean 13.0" in lines


def test_old_epochs_are_left_out_but_for_the_first_and_the_best() -> None:
    many = [{**RECORDS[0], "epoch": n} for n in range(40)]
    text = curves.training_table(many, {"best_epoch": 7})
    shown = [int(line.split()[0]) for line in text.splitlines()[2:]]
    assert shown == [1, 8, *range(31, 41)]


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves.draw_training(RECORDS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'pycc\[tensorboard\]'"):
        curves.write_tensorboard(RECORDS, tmp_path)
