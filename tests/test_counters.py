"""Counting from Python: ``pycc.count``, and tiles that give the map of the whole image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.toys import Coarse
from torch import Tensor, nn

import pycc
from pycc import defense, models
from pycc.backdoor.poisoning.overlap import content_of
from pycc.counters import count_of, identity, tiled_density
from pycc.models import CounterModel
from pycc.types import Sample


class Layers(nn.Module):
    """Layers with two poolings; a cell of 4 pixels depends on at most 30."""

    stride = 4

    def __init__(self, receptive_field: int | None = 30) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.receptive_field = receptive_field
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 5, padding=2),
            nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 1, 3, padding=1), nn.Softplus(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = self.net(images)
        return density


@pytest.mark.parametrize("shape", [(64, 80), (97, 131), (61, 203), (30, 300)])
@pytest.mark.parametrize("pixels", [4900, 7000, 12000])
def test_tiles_give_the_map_of_the_whole_image(shape: tuple[int, int], pixels: int) -> None:
    counter, image = Layers().eval(), torch.rand(1, 3, *shape)
    with torch.no_grad():
        whole, tiled = counter(image), tiled_density(counter, image, pixels)
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().max()) <= 1e-5 * float(whole.max())


def test_no_tile_is_larger_than_allowed() -> None:
    seen: list[int] = []

    class Watched(Layers):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.shape[2] * images.shape[3])
            return super().forward(images)

    with torch.no_grad():
        tiled_density(Watched().eval(), torch.rand(1, 3, 200, 240), 9000)
    assert len(seen) > 1
    assert max(seen) <= 9000


@pytest.mark.parametrize(
    "name", ["mcnn", "cmtl", "narrow", pytest.param("csrnet", marks=pytest.mark.long)]
)
def test_tiles_of_published_counters(name: str) -> None:
    torch.manual_seed(1)
    counter = models.create(name).eval()
    field = counter.receptive_field
    assert field is not None
    image = torch.rand(1, 3, 3 * field + 50, max(64, field // 2))
    with torch.no_grad():
        whole, tiled = (
            counter(image),
            tiled_density(counter, image, (5 * field // 2) * image.shape[3]),
        )
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


def test_what_cannot_be_counted_in_tiles() -> None:
    with pytest.raises(ValueError, match="without a bounded receptive field cannot count in tiles"):
        pycc.count(Layers(None), torch.rand(3, 64, 64), max_pixels=1000)
    with pytest.raises(ValueError, match="enlarges a grid coarser than its cells cannot count in"):
        pycc.count(Coarse(), torch.rand(3, 64, 64), max_pixels=1000)
    with pytest.raises(ValueError, match="a tile of one cell needs"):
        pycc.count(Layers(), torch.rand(3, 640, 640), max_pixels=50)


def test_count_of_tensors_and_samples() -> None:
    counter, images = Layers(), torch.rand(2, 3, 32, 36)
    counts = pycc.count(counter, images)
    assert counter.training  # as it was before
    with torch.no_grad():
        wanted = counter.eval()(images).sum((1, 2, 3))
    assert [c.name for c in counts] == ["image 0", "image 1"]
    assert [c.count for c in counts] == pytest.approx(wanted.tolist(), rel=1e-5)
    roi = torch.zeros(32, 36, dtype=torch.bool)
    (inside,) = pycc.count(counter, [Sample("s", images[0], torch.zeros(0, 2), roi)])
    assert (inside.count, inside.truth, float(inside.density.abs().sum())) == (0.0, 0, 0.0)
    with pytest.raises(ValueError, match=r"images must be a tensor \[N,3,H,W\] or \[3,H,W\]"):
        pycc.count(counter, images[0, 0])
    with pytest.raises(ValueError, match="must hold RGB values"):
        pycc.count(counter, 255 * images)


def test_count_of_lists_of_images() -> None:
    counter, images = Layers().eval(), [torch.rand(3, 32, 36), torch.rand(3, 24, 40)]
    each = [pycc.count(counter, image)[0].count for image in images]
    for given in (images, tuple(images), iter(images), [image.double() for image in images]):
        assert [c.count for c in pycc.count(counter, given)] == pytest.approx(each, rel=1e-6)
    mixed = pycc.count(counter, [images[0], Sample("street", images[1], None)])
    assert [(c.name, c.truth) for c in mixed] == [("image 0", None), ("street", None)]
    assert pycc.count(counter, []) == []
    others: list[tuple[Any, str]] = [
        ("street.jpg", "str; pycc.data.open"), (None, "NoneType"), (mixed[0], "Count"),
        ([images[0].numpy()], "ndarray at index 0"), ([images[0], "a.jpg"], "str at index 1"),
        ({"a": images[0]}, "dict"),
    ]  # fmt: skip
    for given, got in others:
        with pytest.raises(TypeError, match=rf"images must be a tensor .*, got {got}"):
            pycc.count(counter, given)


def test_a_count_that_is_not_finite_is_an_error() -> None:
    layer = torch.nn.Conv2d(3, 1, 1)
    layer.stride, layer.receptive_field = 1, 1
    torch.nn.init.constant_(layer.weight, torch.inf)
    with pytest.raises(ValueError, match="count: the counter's map must be finite, its sum is"):
        pycc.count(layer, torch.rand(1, 3, 8, 8))


def test_images_of_another_shape_are_an_error() -> None:
    layer = torch.nn.Conv2d(4, 1, 1)
    layer.stride, layer.receptive_field = 1, 1
    with pytest.raises(ValueError, match=r"count: image must be \[3,H,W\]"):
        pycc.count(layer, torch.rand(1, 4, 8, 8))


class Rounding(CounterModel):
    """A counter whose option shows in no count of a small image and in no weight."""

    name = "rounding"

    def __init__(self, limit: int) -> None:
        super().__init__(nn.Conv2d(3, 1, 4, stride=4), stride=4, receptive_field=4)
        self.limit = limit

    def options(self) -> dict[str, object]:
        return {"limit": self.limit}


def test_counters_of_equal_weights_and_other_options_differ() -> None:
    one, same, other = Rounding(500), Rounding(500), Rounding(1000)
    for counter in (same, other):
        counter.load_state_dict(one.state_dict())
    assert identity(one) == identity(same) != identity(other)
    inside = [identity(defense.clipped(counter.eval(), 1.0)) for counter in (one, same, other)]
    assert inside[0] == inside[1] != inside[2], "a counter inside a defense too"
    assert content_of(one) != content_of(other), "the fingerprint of backdoor runs"


def test_counts_are_exact_on_cuda() -> None:
    seen = []

    class Watching(nn.Conv2d):
        stride, receptive_field = 1, 1

        def forward(self, images: Tensor) -> Tensor:
            flags = torch.backends.cudnn
            seen.append((flags.deterministic, flags.benchmark, flags.allow_tf32))
            return images.mean(1, keepdim=True)

    sample = Sample("street", torch.rand(3, 8, 8), None)
    assert pycc.count(Watching(3, 1, 1), [sample])[0].count > 0
    assert count_of(Watching(3, 1, 1), sample) > 0
    assert set(seen) == {(True, False, False)}


def test_a_data_set_without_an_iterator_is_counted_by_its_length() -> None:
    class Street:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            return Sample(f"street {index}", torch.rand(3, 8, 8), None)

    names = [counted.name for counted in pycc.count(Layers(), Street())]  # type: ignore[arg-type]
    assert names == ["street 0", "street 1"]
