"""The poisoning that a manifest states is read back, and compared without file names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pycc import data
from pycc.backdoor import Add, Blend, Sinusoid, poison
from pycc.backdoor.evaluation.folders import poisoning_of
from pycc.backdoor.poisoning.stated import StatedPoisoning


def test_what_a_manifest_states_is_read_back() -> None:
    samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    for trigger in (Blend(alpha=0.3), Sinusoid(0.1, 128.0)):
        settings = poison(samples, trigger, Add(7), fraction=0.5, seed=3).settings()
        stated = StatedPoisoning.read(settings)
        assert (stated.trigger.name, stated.seed, stated.fraction) == (trigger.name, 3, 0.5)
        assert stated.strategy.fields == {"amount": 7}
        assert stated.json() == json.loads(json.dumps(settings))
        assert replace(stated, defended="pruning").json() == {
            **stated.json(), "defended": "pruning"
        }  # fmt: skip


def test_a_picture_is_compared_by_its_content(tmp_path: Path) -> None:
    for name, grey in (("one", 10), ("copy", 10), ("other", 20)):
        data.save_image(tmp_path / f"{name}.png", torch.full((3, 8, 8), grey / 255))
    one, copy, other = (
        StatedPoisoning.of(
            Blend(picture=str(tmp_path / f"{name}.png")), Add(), seed=0, defended=None
        )
        for name in ("one", "copy", "other")
    )
    assert one.changes(copy) == []
    assert one.changes(other) == ["trigger.picture_content changed"]
    assert one.changes(replace(copy, seed=4)) == ["seed was 0, is 4"]


def test_a_manifest_without_trigger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").touch()
    manifest = {"schema": 1, "kind": "train", "settings": {"poisoning": {"seed": 0}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json: expected a trigger, a strategy and"):
        poisoning_of(tmp_path / "weights.npz")
