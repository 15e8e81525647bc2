"""Counting errors as metrics of torchmetrics: the numbers of pycc.metrics, batch by batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip(
    "torchmetrics", reason="needs pip install 'pycc[torchmetrics]'", exc_type=ImportError
)

from torchmetrics import MetricCollection

from pycc import metrics
from pycc.adapters.torchmetrics import GAME, MAE, RMSE

DENSITY = torch.rand(7, 1, 6, 8, generator=torch.Generator().manual_seed(0))
HEADS = [torch.tensor([[1.0, 2.0], [30.0, 20.0], [9.0, 23.0]])[: n % 4] for n in range(7)]
BATCHES = [slice(0, 3), slice(3, 4), slice(4, 7)]


def floats(result: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


def test_batches_give_the_errors_of_all_images_with_their_intervals() -> None:
    collection = MetricCollection([MAE(), RMSE(confidence=0.5), GAME(stride=4, level=1)])
    for part in BATCHES:
        collection.update(DENSITY[part], HEADS[part])
    truth = [len(heads) for heads in HEADS]
    predicted = DENSITY.double().sum((1, 2, 3)).numpy()
    error = np.abs(predicted - truth)
    cells = [
        metrics.game(heads, density[0], (24, 32), level=1, stride=4)
        for heads, density in zip(HEADS, DENSITY.double().numpy(), strict=True)
    ]
    mae, game = metrics.bootstrap(error), metrics.bootstrap(cells)
    rmse = [math.sqrt(end) for end in metrics.bootstrap(error**2, level=0.5)]
    assert floats(collection.compute()) == {
        "mae": metrics.mae(truth, predicted), "mae_low": mae[0], "mae_high": mae[1],
        "rmse": metrics.rmse(truth, predicted), "rmse_low": rmse[0], "rmse_high": rmse[1],
        "game1": pytest.approx(np.mean(cells)), "game1_low": game[0], "game1_high": game[1],
    }  # fmt: skip
    collection.reset()
    collection.update(DENSITY[:1], HEADS[:1])
    assert floats(collection.compute())["mae"] == pytest.approx(predicted[0])


def test_processes_together_give_the_result_of_one() -> None:
    whole, parts = MAE(), [MAE(), MAE()]
    whole.update(DENSITY, HEADS)
    parts[0].update(DENSITY[:3], HEADS[:3])
    parts[1].update(DENSITY[3:], HEADS[3:])

    def gathered(state: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        name = "truth" if torch.equal(state, torch.cat(parts[0].truth)) else "predicted"
        return [torch.cat(getattr(part, name)) for part in parts]

    first = MAE(dist_sync_fn=gathered, distributed_available_fn=lambda: True)
    first.update(DENSITY[:3], HEADS[:3])
    assert floats(first.compute()) == floats(whole.compute())


def test_counts_and_maps_are_the_same_to_errors_of_counts() -> None:
    of_maps, of_counts = RMSE(), RMSE()
    of_maps.update(DENSITY, HEADS)
    of_counts.update(DENSITY.double().sum((1, 2, 3)), torch.tensor([len(h) for h in HEADS]))
    assert floats(of_maps.compute()) == floats(of_counts.compute())


def test_an_incomplete_cell_needs_the_images_size() -> None:
    metric = GAME(stride=4, level=0)
    metric.update(DENSITY[:1], [torch.tensor([[29.0, 22.0]])], shape=(23, 30))
    assert floats(metric.compute())["game0"] == pytest.approx(abs(float(DENSITY[0].sum()) - 1))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"MAE: confidence must be in \(0,1\), got 95"):
        MAE(confidence=95)
    with pytest.raises(ValueError, match=r"RMSE: preds must be counts \[N\] .* got \[7, 1, 6, 8\]"):
        RMSE().update(DENSITY, torch.ones(3))
    with pytest.raises(ValueError, match=r"GAME: preds must be maps .* got \[7, 1, 6, 8\] and 2"):
        GAME(stride=4).update(DENSITY, HEADS[:2])
    with pytest.raises(ValueError, match=r"^game: "):
        GAME(stride=4).update(DENSITY, HEADS, shape=(100, 100))
