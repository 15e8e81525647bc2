"""Images of another range than [0,1] are refused wherever they enter, with the likely cause."""

from __future__ import annotations

import doctest
import errno
from collections import UserList
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import pycc.checks
from pycc import attack, certify, data, defense, models, train
from pycc.backdoor import gradcam
from pycc.backdoor.poisoning.triggers import triggers
from pycc.checks import check_image, check_images, check_values, lacks_memory, unchecked
from pycc.local import Box, Local
from pycc.types import Sample

WRONG = {
    "8-bit levels, divide by 255": lambda image: image * 255.0,
    "already normalised": lambda image: (image - 0.45) / 0.225,
    "range of [-1,1]": lambda image: image * 2.0 - 1.0,
    "16-bit levels": lambda image: image * 65535.0,
    "clamp what an edit has pushed out": lambda image: image + 0.1,
    "NaN or infinity": lambda image: torch.where(image > 0.5, torch.nan, image),
    "NaN": lambda image: torch.where(image > 0.5, torch.inf, image),
}


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("of any text"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_told_from_other_errors(error: Exception, lacking: bool) -> None:
    assert lacks_memory(error) is lacking


class Tiny(nn.Module):
    """A counter of 4 pixels a cell whose cells are not negative."""

    stride, receptive_field, minimum_side = 4, 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.layer.weight, 0.3)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.layer(images), 4).relu()


def image() -> Tensor:
    return torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(1))


def sample(pixels: Tensor) -> Sample:
    return Sample("street", pixels, torch.tensor([[3.0, 4.0]], dtype=torch.float64))


def defended(make: Callable[[nn.Module], object]) -> Callable[[Tensor], object]:
    def count(pixels: Tensor) -> object:
        counter = make(Tiny().eval())
        assert callable(counter)
        return counter(pixels[None])

    return count


ENTRIES: dict[str, Callable[[Tensor], object]] = {
    "a counter": lambda x: models.wrap(Tiny().eval(), stride=4)(x[None]),
    "a published counter": lambda x: models.create("mcnn").eval()(x[None]),
    "a sample, as attack.run, certify and train.fit take": sample,
    "certify.masked": lambda x: certify.masked(Tiny().eval(), x, patch_size=4, allowance=1.0),
    "certify.additive": lambda x: certify.additive(Tiny().eval(), x, patch_size=4, caps=1.0),
    "certify.quantile": lambda x: certify.quantile(
        Tiny().eval(), x, patch_size=4, k=9, fill=0.5, draws=2
    ),
    "certify.fixed_ablations": lambda x: certify.fixed_ablations(
        Tiny().eval(), x, patch_size=4, k=9, fill=0.5, draws=2
    ),
    "certify.two_mask": lambda x: certify.two_mask(
        Tiny().eval(), x, patch_size=4, masks=4, fill=0.5
    ),
    "defense.masked": defended(lambda c: defense.masked(c, patch_size=4, allowance=1.0)),
    "defense.clipped": defended(lambda c: defense.clipped(c, 1.0)),
    "defense.tiled": defended(lambda c: defense.tiled(c, 8)),
    "defense.two_mask": defended(lambda c: defense.two_mask(c, patch_size=4, masks=4, fill=0.5)),
    "defense.ablated": defended(lambda c: defense.ablated(c, 9, draws=2, fill=0.5)),
    "defense.banded": defended(lambda c: defense.banded(c, 4, draws=2, fill=0.5)),
    "defense.blocked": defended(lambda c: defense.blocked(c, 4, draws=2, fill=0.5)),
    "defense.mixed": defended(lambda c: defense.mixed([c, Tiny().eval()])),
    "Grad-CAM": lambda x: gradcam(Tiny().eval(), x, "layer"),
    "trigger": lambda x: triggers["noise"]()(x, seed=0, name="street"),
}


@pytest.mark.parametrize("cause", WRONG)
@pytest.mark.parametrize("entry", ENTRIES)
def test_another_range_is_refused(entry: str, cause: str) -> None:
    ENTRIES[entry](image())
    ENTRIES[entry](image() * 1.0009)  # what resizing and rounding may leave
    with pytest.raises(ValueError, match=r"must hold RGB values of \[0,1\], got") as refused:
        ENTRIES[entry](WRONG[cause](image()))
    assert cause in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_sample_names_itself() -> None:
    with pytest.raises(ValueError, match=r"^street: image must hold RGB values of .*got 0.*…25"):
        sample(image() * 255)


@pytest.mark.parametrize(
    "run",
    [
        lambda one, out: attack.run(Tiny(), one, [], checks=False),
        lambda one, out: train.fit(models.create("mcnn"), one, out=out),
    ],
    ids=["attack", "train"],
)
def test_a_data_set_of_another_range_is_refused(run, tmp_path: Path) -> None:
    """A user's own sequence makes its samples when they are requested."""

    class Levels(data.Dataset):
        name, names = "levels", ["a", "b"]

        def _load(self, index: int) -> Sample:
            return sample(image() * 255)

    with pytest.raises(ValueError, match="8-bit levels, divide by 255"):
        run(Levels(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_augmented_images_may_leave_the_range() -> None:
    counter = models.wrap(Tiny().train(), stride=4)
    counter.loss(image()[None] * 1.2, torch.zeros(1, 1, 4, 5)).backward()
    with pytest.raises(ValueError, match="wrap: images must hold RGB values"):
        counter.eval()(image()[None] * 1.2)
    with unchecked():
        counter(image()[None] * 1.2)


@pytest.mark.parametrize(
    "take",
    [
        lambda samples, out: attack.run(Tiny(), samples, [], checks=False, out=out),
        lambda samples, out: train.fit(models.create("mcnn"), samples, out=out),
    ],
    ids=["attack", "train"],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.rand(3, 16, 20) * 255}, "street: image must hold RGB values"),
        ({"image": torch.rand(3, 16, 20).double()}, r"street: image must be \[3,H,W\] float32"),
        ({"image": torch.rand(16, 20, 3)}, r"street: image must be \[3,H,W\] float32"),
        ({"roi": torch.ones(16, 20)}, r"street: roi must be \[16, 20\] bool"),
        ({"roi": torch.ones(15, 20, dtype=torch.bool)}, r"street: roi must be \[16, 20\] bool"),
        ({"points": torch.full((1, 2), torch.nan)}, "street: points must be"),
    ],
)
def test_samples_of_any_sequence_are_checked(
    take: Callable[..., object], change: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    """Also those of a data set of the user's, which may be no ``Sample``."""
    fields = {"name": "street", "image": image(), "points": torch.rand(4, 2).double() * 9,
              "roi": None, "annotated": True, "count": 4, **change}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        take(UserList([SimpleNamespace(**fields)]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_picture_of_another_range_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save_image: image must hold RGB values of \[0,1\]"):
        data.save_image(tmp_path / "a.png", image() * 255)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("check", "shape", "wanted"),
    [
        (check_image, (1, 3, 8, 8), r"image must be \[3,H,W\] \(RGB in \[0,1\]\), got \[1, 3, 8"),
        (check_image, (4, 8, 8), r"image must be \[3,H,W\]"),
        (check_image, (3, 0, 8), r"got \[3, 0, 8\]"),
        (check_images, (3, 8, 8), r"images must be \[N,3,H,W\]"),
        (check_images, (0, 3, 8, 8), r"got \[0, 3, 8, 8\]"),
    ],
)
def test_shapes(check: Callable[[str, Tensor], None], shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        check("op", torch.zeros(shape))


def test_types() -> None:
    with pytest.raises(ValueError, match=r"floats .* got torch.uint8: convert with"):
        check_image("op", torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="op: image must be a tensor, got ndarray"):
        check_image("op", image().numpy())  # type: ignore[arg-type]


def test_the_bounds_themselves_pass() -> None:
    check_values("op", "x", torch.tensor([0.0, 1.0]))
    check_values("op", "x", torch.tensor([-0.0009, 1.0009]))
    check_values("op", "x", torch.zeros(0))
    for value in (-0.0011, 1.0011):
        with pytest.raises(ValueError, match=r"op: x must hold"):
            check_values("op", "x", torch.tensor([value]))


def test_a_defended_counter_is_still_evaluated_around_its_change() -> None:
    """The check reads values, which a counter that is recorded does not have."""
    counter = defense.clipped(Tiny().eval())
    local = Local(counter, image()[None], Box(4, 4, 8, 8))
    assert local.follows_layers
    assert local.cells.shape == (1, 1)


def test_examples() -> None:
    assert doctest.testmod(pycc.checks).attempted >= 1
    assert doctest.testmod(pycc.checks).failed == 0
