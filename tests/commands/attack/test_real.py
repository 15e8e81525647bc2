"""The published network with its public weights on real images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycc.commands import main


@pytest.mark.long
def test_a_patch_on_shanghaitech(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    data, weights = shared / "data/shanghaitech/part_A", shared / "data/weights"
    if not data.is_dir() or not weights.is_dir():
        pytest.skip("no real data in ../shared")
    out = tmp_path / "run"
    code = main("attack", [
        "--data", str(data), "--split", "test", "--max-images", "1", "--model", "mcnn",
        "--weights", str(weights / "mcnn_shtechA_660.h5"), "--patch-size", "20", "81",
        "--preset", "paper", "--steps", "60", "--step-size", "0.25", "--decay", "cosine",
        "--objective", "over", "--transform", "none", "--pgd-steps", "2", "--no-pictures",
        "--out", str(out),
    ])  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    failed = {check["name"] for check in summary["checks"] if check["verdict"] == "fail"}
    # So few steps have not converged, and the run may say so.
    assert failed <= {"twice the steps bring little"}
    assert code == (1 if failed else 0)
    rows = summary["rows"]
    by_row = {(row["condition"], row["patch_size"]): row for row in rows}
    assert by_row["apam", 20]["gain_over_noise"] > 60
    assert by_row["apam", 81]["gain_over_noise"] > 3000
    assert by_row["apam", 81]["mae"] > by_row["apam", 20]["mae"] > by_row["clean", None]["mae"]
    # Untrained patches of one seventieth of the image hardly move the count.
    assert abs(by_row["noise", 81]["mean_count"] / by_row["clean", None]["mean_count"] - 1) < 0.05
