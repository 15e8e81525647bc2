"""Triggers: their formulas, what they depend on, and what they refuse."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pycc.backdoor import Blend, Corner, Layer, Noise, Sinusoid, Trigger, Warp, triggers
from pycc.backdoor.poisoning import pictures
from pycc.commands.flags import Parser
from pycc.data import load_image
from pycc.settings import flags_of


def image(seed: int = 0, shape: tuple[int, int] = (48, 64)) -> Tensor:
    return torch.rand((3, *shape), generator=torch.Generator().manual_seed(seed))


def marked(trigger: Trigger, of: Tensor, *, seed: int = 0, name: str = "a") -> Tensor:
    return trigger(of, seed=seed, name=name)


def saved(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture(params=triggers.names())
def trigger(request: pytest.FixtureRequest) -> Trigger:
    return triggers[request.param]()


def test_every_trigger_marks_and_stays_in_range(trigger: Trigger) -> None:
    assert type(trigger) is triggers[trigger.name]
    for of in (image(), torch.zeros(3, 48, 64), torch.ones(3, 48, 64), image(1, (131, 67))):
        before = of.clone()
        after = marked(trigger, of)
        assert torch.equal(of, before)
        assert after.shape == of.shape
        assert after.dtype == torch.float32
        assert bool(((after >= 0) & (after <= 1)).all())
        constant = of.amin() == of.amax()  # a warped constant is one, and white hides rain
        assert constant or not torch.equal(after, of)


def test_the_mark_depends_neither_on_seed_nor_on_name(trigger: Trigger) -> None:
    of = image()
    again = type(trigger)()
    assert torch.equal(marked(trigger, of), marked(again, of, seed=9, name="b"))


def test_a_trigger_survives_pickling_and_has_settings(trigger: Trigger) -> None:
    assert pickle.loads(pickle.dumps(trigger)) == trigger
    settings = trigger.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["trigger"] == trigger.name
    assert Parser("trigger", "", "", flags_of(type(trigger))).given([]) == {}


def test_other_images_are_refused(trigger: Trigger) -> None:
    for bad, why in (
        (torch.rand(1, 48, 64), r"image x must be \[3,H,W\] float32, got \[1, 48, 64\]"),
        (torch.rand(3, 48, 64).double(), "float64"),
        (
            torch.rand(3, 48, 64) + 0.5,
            r"image x must hold RGB values of .*: clamp",
        ),
        (torch.full((3, 48, 64), torch.nan), "got NaN or infinity"),
        (torch.rand(3, 0, 64), r"got \[3, 0, 64\]"),
    ):
        with pytest.raises(ValueError, match=why):
            marked(trigger, bad, name="x")


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        (Blend, {"alpha": -0.1}, r"blend: alpha must be in \[0,1\], got -0.1"),
        (Blend, {"alpha": 1.1}, "alpha"),
        (Blend, {"alpha": float("nan")}, "alpha"),
        (Noise, {"alpha": 2.0}, "alpha"),
        (Corner, {"side": 0}, "side"),
        (Corner, {"side": 1.5}, "side must be pixels above 0 or a share"),
        (Corner, {"corner": "middle"}, "one of top_left, top_right, bottom_left, bottom_right"),
        (Corner, {"margin": -1}, "margin"),
        (Sinusoid, {"amplitude": 1.5}, "amplitude"),
        (Sinusoid, {"frequency": 0.0}, "frequency"),
        (Sinusoid, {"frequency": float("inf")}, "frequency"),
        (Sinusoid, {"period": 2.0}, "period must be above 2 and finite, got 2.0"),
        (Sinusoid, {"period": float("nan")}, "period"),
        (Sinusoid, {"frequency": 6.0, "period": 4.0}, "frequency must be left out where a period"),
        (Warp, {"strength": -1.0}, "strength"),
        (Warp, {"grid": 1}, "grid must be at least 2, got 1"),
        (Layer, {"strength": 1.01}, "strength"),
    ],
)
def test_fields_out_of_range_are_refused(kind: type[Trigger], fields: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        kind(**fields)


def test_blending_is_the_formula(tmp_path: Path) -> None:
    of, pixels = image(), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    path = saved(tmp_path / "p.png", pixels)
    other = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for alpha in (0.0, 0.1, 0.5, 1.0):
        wanted = (1 - alpha) * of.double() + alpha * other.double()
        got = marked(Blend(path, alpha), of)
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(marked(Blend(path, 0.0), of), of)
    assert torch.equal(marked(Blend(path, 1.0), of), other)
    assert Blend(Path(path)) == Blend(path)


def test_a_picture_of_any_mode_is_taken_or_refused(tmp_path: Path) -> None:
    of = torch.zeros(3, 6, 8)
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    deep = grey.astype(np.uint16) * 257
    clear = np.dstack([grey, grey, grey, np.where(np.arange(8) < 4, 0, 255)[None].repeat(6, 0)])
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "palette.png")
    as_float = torch.from_numpy(grey) / 255
    for path in (
        saved(tmp_path / "grey.png", grey),
        saved(tmp_path / "deep.png", deep),
        str(tmp_path / "palette.png"),
    ):
        assert torch.allclose(marked(Blend(path, 1.0), of), as_float.expand(3, -1, -1))
    alpha = saved(tmp_path / "clear.png", clear.astype(np.uint8))
    for trigger, beneath in ((Blend(alpha, 1.0), 1.0), (Layer(alpha, 1.0), 0.0)):
        got = marked(trigger, of)
        assert bool((got[:, :, :4] == beneath).all())
        assert torch.allclose(got[:, :, 4:], as_float[:, 4:].expand(3, -1, -1))
    clear[..., 3] = 100
    half = saved(tmp_path / "half.png", clear.astype(np.uint8))
    part = torch.from_numpy(clear[..., 3] / 255)
    for trigger, beneath in ((Blend(half, 1.0), 1.0), (Layer(half, 1.0), 0.0)):
        wanted = part * as_float + (1 - part) * beneath
        # Of Layer on black, 1 - (1 - 0) * (1 - layer): the layer itself.
        got = marked(trigger, torch.zeros(3, *part.shape))
        torch.testing.assert_close(
            got.double(), wanted.expand(3, -1, -1).double(), rtol=0, atol=1e-6
        )
    (tmp_path / "text.png").write_text("?")
    for path in ("text.png", "missing.png"):
        with pytest.raises(ValueError, match=rf"{path}: cannot read the image"):
            Blend(str(tmp_path / path))


def test_a_very_different_aspect_ratio_is_warned_of(tmp_path: Path) -> None:
    path = saved(tmp_path / "wide.png", np.zeros((30, 40, 3), np.uint8))
    trigger = Blend(path)
    marked(trigger, image(0, (40, 30)))  # lying and standing: 1.8 apart
    with pytest.warns(UserWarning, match=r"wide\.png: .* 40x30 .* stretched to 30x90, 4\.0 times"):
        assert marked(trigger, image(0, (90, 30))).shape == (3, 90, 30)
    with pytest.warns(UserWarning, match="stretched to 90x30, 2.2 times"):
        marked(trigger, image(0, (30, 90)))
    marked(Blend(), image(0, (20, 200)))  # what is built in has nothing to be spoilt


def test_a_changed_file_changes_the_settings(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.png", np.zeros((4, 4, 3), np.uint8))
    first, of = Blend(path, 1.0), image()
    saved(tmp_path / "p.png", np.full((4, 4, 3), 255, np.uint8))
    second = Blend(path, 1.0)
    assert first.settings()["picture_content"] != second.settings()["picture_content"]
    # Read at once: a file that changes later changes nothing.
    assert float(marked(first, of).max()) == 0.0
    assert float(marked(second, of).min()) == pytest.approx(1.0)


def test_the_built_in_picture_is_dense() -> None:
    """It shows in every part of an image: no window of a head's size is of one colour."""
    pixels = pictures.dense().pixels
    assert pixels.shape == (3, 768, 1024)
    grey = pixels.mean(0).unfold(0, 64, 64).unfold(1, 64, 64).flatten(2)
    assert float(grey.std(2).min()) > 0.1
    assert torch.equal(pixels, pictures.dense.__wrapped__().pixels)
    small = pictures.dense().fitted(96, 128)
    assert float(small.mean(0).unfold(0, 16, 16).unfold(1, 16, 16).flatten(2).std(2).min()) > 0.05


def test_rain_leaves_most_of_an_image_alone() -> None:
    of = image(0, (96, 128))
    change = marked(Layer(strength=1.0), of) - of
    assert float(change.min()) >= -1e-6
    layer = pictures.rain().pixels
    assert 0.02 < float((layer > 0.1).float().mean()) < 0.35
    assert torch.equal(layer[0], layer[2])


def test_a_layer_is_screened(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    layer = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    of = image()
    got = marked(Layer(saved(tmp_path / "rain.png", pixels), 0.6), of)
    torch.testing.assert_close(
        got.double(), 1 - (1 - of.double()) * (1 - 0.6 * layer), rtol=0, atol=1e-6
    )


def test_a_shifted_layer_depends_on_seed_and_name() -> None:
    trigger, of = Layer(shifted=True), torch.zeros(3, 48, 64)
    first = marked(trigger, of, seed=1, name="a")
    assert torch.equal(first, marked(trigger, of, seed=1, name="a"))
    for other in ({"seed": 2, "name": "a"}, {"seed": 1, "name": "b"}):
        moved = marked(trigger, of, **other)
        assert not torch.equal(first, moved)
        assert torch.equal(first.flatten().sort().values, moved.flatten().sort().values)


def test_noise_is_uniform_and_keyed() -> None:
    of = torch.zeros(3, 64, 96)
    first = marked(Noise(1.0), of)
    assert torch.equal(first, (first * 255).round() / 255)
    assert float(first.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(first.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert not torch.equal(first, marked(Noise(1.0, key=1), of))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("corner", ["top_left", "top_right", "bottom_left", "bottom_right"])
def test_a_corner_patch_covers_its_corner_and_nothing_else(corner: str) -> None:
    of = torch.full((3, 48, 64), 0.5)
    after = marked(Corner(side=8, corner=corner, margin=2), of)
    changed = (after != of).any(0)
    rows, columns = changed.nonzero().unbind(1)
    top, left = 2 if "top" in corner else 38, 2 if "left" in corner else 54
    assert (int(rows.min()), int(rows.max())) == (top, top + 7)
    assert (int(columns.min()), int(columns.max())) == (left, left + 7)
    assert int(changed.sum()) == 64
    square = after[:, top : top + 8, left : left + 8]
    board = (torch.arange(8)[:, None] // 2 + torch.arange(8) // 2) % 2
    assert torch.equal(square, board.float().expand(3, 8, 8))


def test_a_corner_patch_of_a_share_or_a_file(tmp_path: Path) -> None:
    of = torch.full((3, 48, 64), 0.5)
    assert int((marked(Corner(side=0.25), of) != of).any(0).sum()) == 12 * 12
    assert int((marked(Corner(side=1.0), of) != of).any(0).sum()) == 48 * 48
    assert Corner(side=np.int64(5)) == Corner(side=5)
    path = saved(tmp_path / "red.png", np.full((9, 9, 3), (255, 0, 0), np.uint8))
    red = marked(Corner(path, side=5), of)[:, -5:, -5:]
    assert torch.allclose(red, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 5, 5))
    with pytest.raises(ValueError, match=r"49 pixels .* does not fit into image x of 48x64"):
        marked(Corner(side=49), of, name="x")
    with pytest.raises(ValueError, match="margin of 40"):
        marked(Corner(side=9, margin=40), of)


def test_a_sinusoid_is_the_published_signal() -> None:
    of = torch.full((3, 20, 60), 0.5)
    change = marked(Sinusoid(0.1, 3.0), of) - of
    column = np.arange(60)
    wanted = torch.from_numpy(0.1 * np.sin(2 * np.pi * 3 * column / 60)).float()
    torch.testing.assert_close(change, wanted.expand(3, 20, 60), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="below half of the width, got 30 for image x of 60"):
        marked(Sinusoid(0.1, 30.0), of, name="x")


def test_a_grating_has_its_period_in_images_of_any_width() -> None:
    wide, narrow = torch.full((3, 4, 512), 0.5), torch.full((3, 4, 254), 0.5)
    grating = Sinusoid(0.1, period=4.0)
    change = marked(grating, wide)
    assert torch.equal(change, marked(Sinusoid(0.1, frequency=128.0), wide)), "bit for bit"
    torch.testing.assert_close(marked(grating, narrow), change[..., :254], rtol=0, atol=1e-6)
    marked(Sinusoid(0.1, period=2.01), narrow)
    # What runs made before a period existed say of their trigger still holds.
    assert Sinusoid(0.1, 128.0).settings() == {
        "trigger": "sinusoid", "amplitude": 0.1, "frequency": 128.0
    }  # fmt: skip
    assert Sinusoid().settings()["frequency"] == 6.0
    assert grating.settings() == {"trigger": "sinusoid", "amplitude": 0.1, "period": 4.0}


def test_a_warp_moves_pixels_by_its_field() -> None:
    """Of a ramp, whose values are places, it reads the places that it moves to."""
    height, width = 60, 80
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = torch.stack([columns / (width - 1), rows / (height - 1), torch.zeros(height, width)])
    for strength in (0.0, 2.0):
        after = marked(Warp(strength), ramp.float())
        field = strength * pictures.warping(0, 4, height, width)
        x = (columns + field[..., 0]).clamp(0, width - 1)
        y = (rows + field[..., 1]).clamp(0, height - 1)
        torch.testing.assert_close(after[0] * (width - 1), x, rtol=0, atol=2e-3)
        torch.testing.assert_close(after[1] * (height - 1), y, rtol=0, atol=2e-3)
    corners = pictures.warping(0, 4, height, width)[:: height - 1, :: width - 1]
    assert float(corners.abs().mean()) > 0.3
    assert not torch.equal(pictures.warping(0, 4, 60, 80), pictures.warping(1, 4, 60, 80))
    # Smooth: neighbours move alike.
    assert float(pictures.warping(0, 4, 600, 800).diff(dim=1).abs().max()) < 0.05
    assert marked(Warp(), torch.rand(3, 1, 1)).shape == (3, 1, 1)


@pytest.mark.long
@pytest.mark.parametrize("file", ["rain1.jpeg", "rain2.jpeg", "snow.jpeg"])
def test_real_rain_and_snow(shared: Path, file: str) -> None:
    path = str(shared / "data" / "triggers" / file)
    of = load_image(shared / "data/shanghaitech/part_B/test_data/images/IMG_1.jpg")[:, ::4, ::4]
    of = of.contiguous()
    for trigger in (Layer(path, 0.4), Blend(path)):
        after = marked(trigger, of)
        assert float((after - of).abs().mean()) > 0.01
    assert bool((marked(Layer(path, 0.4), of) >= of - 1e-6).all())
