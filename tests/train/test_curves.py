"""A training's table, curves and TensorBoard files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.scenes import counter

from pycc.train import (
    BestErrors,
    CountErrors,
    EpochRow,
    TrainRun,
    TrainSummary,
    ValidationRow,
    curves,
)

EPOCHS = [
    EpochRow(0, loss=2.5, lr=1e-3, gradient_norm=1.0, seconds=1.0, images_per_second=4.0),
    EpochRow(1, loss=0.5, lr=1e-4, gradient_norm=1.0, seconds=1.0, images_per_second=5.0),
]
ERRORS = CountErrors(mae=30.0, rmse=41.0, bias=-3.5, images=2)
VALIDATION = ValidationRow(0, ERRORS)
TESTED = CountErrors(mae=12.0, rmse=20.0, bias=1.5, images=3)


def trained(
    epochs: Sequence[EpochRow],
    validations: Sequence[ValidationRow],
    best: int,
    test: CountErrors | None = None,
) -> TrainRun:
    summary = TrainSummary(
        len(epochs), best, BestErrors(2, mae=30.0), stopped_early=False,
        test=None if test is None else {"plain": test},
    )  # fmt: skip
    return TrainRun(counter(), epochs, validations, summary, {}, None)


def test_a_table_of_epochs() -> None:
    lines = curves.training_table(trained(EPOCHS, [VALIDATION], 0, TESTED)).splitlines()
    assert lines[2].split() == ["1", "2.5", "0.001", "4.0", "30.0", "41.0", "-3.5", "best"]
    assert lines[3].split() == ["2", "0.5", "0.0001", "5.0", "-", "-", "-"]
    assert "test, plain: MAE 12.0, RMSE 20.0, bias +1.5 over 3 images" in lines


def test_what_chooses_and_the_scenes_are_in_the_table() -> None:
    scored = ValidationRow(1, replace(ERRORS, mae=33.0), score=45.5)
    test = replace(TESTED, mae_by_group={"S1": 10.0, "S2": 16.0}, mae_over_groups=13.0)
    lines = curves.training_table(trained(EPOCHS, [VALIDATION, scored], 1, test)).splitlines()
    assert lines[0].split()[-2:] == ["bias", "score"]
    assert lines[2].split()[-4:] == ["30.0", "41.0", "-3.5", "-"]
    assert lines[3].split()[-5:] == ["33.0", "41.0", "-3.5", "45.5", "best"]
    assert "test, plain: MAE of S1 10.0, S2 16.0; their mean 13.0" in lines


def test_old_epochs_are_left_out_but_for_the_first_and_the_best() -> None:
    many = [replace(EPOCHS[0], epoch=n) for n in range(40)]
    text = curves.training_table(trained(many, [], 7))
    shown = [int(line.split()[0]) for line in text.splitlines()[2:-1]]
    assert shown == [1, 8, *range(31, 41)]


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves.draw_training(trained(EPOCHS, [VALIDATION], 0), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'pycc\[tensorboard\]'"):
        curves.write_tensorboard(trained(EPOCHS, [VALIDATION], 0), tmp_path)
