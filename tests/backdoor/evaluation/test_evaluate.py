"""An evaluation from Python: a run of the command's kind, in memory, in a folder, and resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from support.backdoor import main
from torch import Tensor

from pycc import backdoor, data, runs


class Bright:
    """A counter without weights or a name: the mean of each cell."""

    stride, receptive_field = 8, 8

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)


@pytest.fixture
def evaluate() -> partial[backdoor.BackdoorMetrics]:
    samples = data.open("synthetic", limit=2, shape=(64, 96))
    return partial(
        backdoor.evaluate, Bright(), samples, backdoor.Noise(), backdoor.Add(20),
        clean_counter=Bright(),
    )  # fmt: skip


def test_a_run_in_a_folder_has_the_metrics_of_one_in_memory_and_resumes(
    evaluate: partial[backdoor.BackdoorMetrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory, folder = evaluate(), tmp_path / "run"
    assert evaluate(out=folder) == memory
    lines = (folder / runs.RESULTS).read_bytes().splitlines(keepends=True)
    assert len(lines) == 8  # two counters, two images, without and with the trigger
    (folder / runs.RESULTS).write_bytes(b"".join(lines[:3]))
    assert evaluate(out=folder, resume=True) == memory
    assert (folder / runs.RESULTS).read_bytes() == b"".join(lines)
    assert runs.read_manifest(folder)["kind"] == "backdoor"
    assert main(["report", str(folder), "--no-pictures"]) == 0
    assert "Bright" in capsys.readouterr().out


def test_a_folder_of_another_evaluation_is_refused(
    evaluate: partial[backdoor.BackdoorMetrics], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    evaluate(out=folder)
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        evaluate(out=folder)
    with pytest.raises(ValueError, match=r"settings\.seed was 0, is 1"):
        evaluate(out=folder, resume=True, seed=1)
    with pytest.raises(ValueError, match=r"settings\.defense was None, is 'anp'"):
        evaluate(out=folder, resume=True, defense="anp")
