from __future__ import annotations

from typing import Any

import pytest

from pycc.report import AttackSummary, summarise, table


def record(index: int, condition: str, size: Any, count: float, truth: int = 100) -> dict:
    return {
        "index": index, "condition": condition, "patch_size": size, "count": count, "truth": truth,
        "area": 0.0 if size is None else 0.01,
    }  # fmt: skip


RECORDS = [
    record(0, "clean", None, 90.0),
    record(0, "grey", 20, 80.0),
    record(0, "noise", 20, 95.0),
    record(1, "clean", None, 120.0),
    record(1, "grey", 20, 110.0),
    record(1, "noise", 20, 125.0),
    record(0, "apam", 20, 300.0),
    record(1, "apam", 20, 180.0),
]


def test_by_hand() -> None:
    summary = summarise(RECORDS)
    assert summary.images == 2
    clean, grey, noise, apam = summary.rows
    assert (clean.condition, clean.patch_size) == ("clean", None)
    assert (clean.mae, clean.bias) == (15, 5)
    assert clean.gain_over_noise is None
    assert clean.error_rate == 0
    assert (grey.mae, noise.mae, apam.mae) == (15, 15, 140)
    assert apam.gain_over_noise == 125
    assert apam.rmse == pytest.approx(((200**2 + 80**2) / 2) ** 0.5)
    assert apam.mean_count == 240
    assert apam.error_rate == pytest.approx(100 * (210 / 90 + 60 / 120) / 2)
    assert apam.area == pytest.approx(1.0)


def test_order_of_results_does_not_matter() -> None:
    mixed = [RECORDS[0], *RECORDS[:0:-1]]
    rows = {(r.condition, r.patch_size): r for r in summarise(mixed).rows}
    assert rows == {(r.condition, r.patch_size): r for r in summarise(RECORDS).rows}


def test_sizes_keep_the_order_in_which_they_were_given() -> None:
    records = [record(0, "clean", None, 1.0)]
    records += [record(0, name, size, 2.0) for size in (0.16, 20) for name in ("noise", "apam")]
    rows = [(row.patch_size, row.condition) for row in summarise(records).rows]
    assert rows == [(None, "clean"), (0.16, "noise"), (0.16, "apam"), (20, "noise"), (20, "apam")]


def test_undefined_error_rates_are_reported() -> None:
    records = [record(0, "clean", None, 0.0), record(0, "apam", 20, 7.0)]
    summary = summarise(records)
    assert [row.error_rate for row in summary.rows] == [None, None]
    assert [row.error_rate_undefined for row in summary.rows] == [1, 1]
    text = table(summary)
    assert "error rate undefined on 1 image: the clean prediction is 0" in text
    assert "nan" not in text
    assert "inf" not in text


def test_the_table_is_aligned() -> None:
    lines = table(summarise(RECORDS)).splitlines()
    assert lines[0].split() == [
        "patch", "patch", "size", "MAE", "95", "%", "RMSE", "bias", "mean", "count", "error",
        "rate", "%", "gain", "over", "noise", "area", "%",
    ]  # fmt: skip
    assert set(lines[1]) == {"-"}
    assert len({len(line) for line in lines[:6]}) == 1
    assert lines[5].split() == [
        "apam", "20", "140.0", "80.0…200.0", "152.3", "140.0", "240.0", "141.7", "125.0", "1.000",
    ]  # fmt: skip


def test_no_results_give_an_empty_table() -> None:
    assert summarise([]) == AttackSummary(images=0, rows=())
    assert "images: 0" in table(summarise([]))


def test_errors_without_annotation_are_left_open() -> None:
    summary = summarise([{**r, "truth": None} for r in RECORDS])
    known = summarise(RECORDS).rows
    for row, before in zip(summary.rows, known, strict=True):
        assert {getattr(row, n) for n in ("mae", "rmse", "bias", "mae_low", "mae_high")} == {None}
        assert row.mae_by_seed is row.gain_over_noise is None
        for name in ("mean_count", "error_rate", "area", "images"):
            assert getattr(row, name) == getattr(before, name)
    lines = table(summary).splitlines()
    assert lines[5].split() == ["apam", "20", "-", "-", "-", "-", "240.0", "141.7", "-", "1.000"]
    assert lines[-1] == "images without annotation: errors against their heads are unknown"


def test_errors_by_group_are_those_of_its_images() -> None:
    groups = {0: "S2", 1: "S1"}
    records = [{**r, "group": groups[r["index"]]} for r in RECORDS]
    records.append({**record(2, "clean", None, 106.0), "group": "S1"})
    summary = summarise(records)
    clean = summary.rows[0]
    assert clean.mae_by_group == {"S2": 10, "S1": 13}
    assert clean.mae_over_groups == 11.5
    assert clean.mae == 12
    assert summary.rows[-1].mae_by_group == {"S2": 200, "S1": 80}
    lines = table(summary).splitlines()
    assert [line for line in lines if line.startswith("MAE by group")] == [
        "MAE by group: S2 10.0, S1 13.0; mean 11.5"
    ]
    several = table(summarise([{**r, "victim": "mcnn"} for r in records]))
    assert "MAE by group, mcnn: S2 10.0, S1 13.0; mean 11.5" in several
