"""Heads as detections of supervision: boxes around them, and zones that count them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip(
    "supervision", reason="needs pip install 'pycc[supervision]'", exc_type=ImportError
)

import supervision

import pycc
from pycc import data, models
from pycc.adapters.supervision import density_detections, detections
from pycc.report.overlay import peaks


@pytest.fixture(scope="module")
def scene() -> data.Dataset:
    return data.open("synthetic", split="test", limit=1, shape=(96, 128), heads=20)


def test_boxes_stand_around_the_heads(scene) -> None:
    points = scene[0].points
    found = detections(points, side=torch.linspace(4, 8, len(points)))
    np.testing.assert_allclose(
        found.get_anchors_coordinates(supervision.Position.CENTER), points.numpy(), atol=1e-4
    )
    np.testing.assert_allclose(found.box_area, np.linspace(4, 8, len(points)) ** 2, rtol=1e-4)
    assert {*found["class_name"]} == {"head"}
    assert len(detections(points[:0], side=4.0)) == 0


def test_a_zone_counts_the_heads_in_it(scene) -> None:
    points = scene[0].points.floor()
    zone = supervision.PolygonZone(
        polygon=np.array([[0, 0], [63, 0], [63, 95], [0, 95]]),
        triggering_anchors=[supervision.Position.CENTER],
    )
    inside = zone.trigger(detections(points, side=2.0))
    assert inside.tolist() == (points[:, 0] <= 63).tolist()
    assert 0 < inside.sum() < len(points)


def test_a_density_map_shows_its_heads(scene) -> None:
    counter = models.load("mcnn-synthetic")
    (counted,) = pycc.count(counter, scene)
    found = density_detections(counted.density, counter.stride, side=6.0)
    heads = peaks(counted.density, counter.stride)
    assert len(found) == len(heads) > 5
    np.testing.assert_allclose(found.xyxy[:, :2] + 3.0, heads.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("points", "side", "says"),
    [
        (torch.zeros(3), 4.0, r"points must be \[N,2\] \(x, y\), got \[3\]"),
        (torch.zeros(3, 2), torch.ones(2), r"side must be a number or \[3\], got \[2\]"),
        (torch.zeros(3, 2), 0.0, r"side must be positive pixels, got 0.0"),
    ],
)
def test_wrong_arguments(points, side, says: str) -> None:
    with pytest.raises(ValueError, match=f"^detections: {says}$"):
        detections(points, side=side)
