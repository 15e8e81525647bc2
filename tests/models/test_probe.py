"""The probe image, weights metadata, and weights read in a wrong convention."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy import ndimage
from support import narrow
from torch import Tensor, nn

from pycc import models
from pycc.models import vgg
from pycc.models.base import CounterModel
from pycc.models.metadata import beside, weights_metadata
from pycc.models.probe import HEADS, ProbeResult, blank_image, diagnose, probe_image, probe_result
from pycc.models.weights import read_weights


def test_the_probe_image_is_its_ground_with_heads() -> None:
    changed = (probe_image() != blank_image()).any(1)[0].numpy()
    _, discs = ndimage.label(changed)
    assert discs == HEADS
    assert float(blank_image().min()) > 0.4


def test_a_checksum_sees_where_people_are() -> None:
    """A map turned around has the same count and another checksum."""

    class Around(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.turned = turned

        def forward(self, images: Tensor) -> Tensor:
            dark = nn.functional.avg_pool2d(1 - images.mean(1, keepdim=True), 4)
            return dark.flip(3) if self.turned else dark

    upright, other = (
        probe_result(models.wrap(Around(turned), stride=4)) for turned in (False, True)
    )
    assert upright.count == pytest.approx(other.count, rel=1e-6)
    assert abs(upright.checksum - other.checksum) > 1e-3 * upright.checksum


@pytest.mark.parametrize(
    ("result", "plausible"),
    [((32, 0), True), ((7, 1), True), ((6, 0), False), ((160, 30), True), ((161, 0), False),
     ((32, 9), False), ((32, -9), False), ((-32, 0), False), ((float("nan"), 0), False)],
)  # fmt: skip
def test_plausible_results(result: tuple[float, float], plausible: bool) -> None:
    assert ProbeResult(result[0], 0.0, result[1]).plausible == plausible


# --- wrong conventions


@pytest.fixture
def public(shared: Path) -> Callable[[str], dict[str, Tensor]]:
    """Public weights, changed a little so that they are not recognised by their content."""
    pytest.importorskip("h5py")

    def read(file: str) -> dict[str, Tensor]:
        state = read_weights(shared / "data/weights" / file).state
        state["fuse.0.conv.bias"] = state["fuse.0.conv.bias"] * 1.002
        return state

    return read


def _warned(path: Path, **options: object) -> str:
    with pytest.warns(UserWarning, match="plausible in another") as caught:
        models.load(path, **options)
    (warning,) = caught
    text = str(warning.message)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_right_conventions_are_not_warned_about(
    public: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    options = {"input": "gray_half", "final_relu": False}
    for file in ("mcnn_shtechA_660.h5", "mcnn_shtechB_110.h5", "mcnn_tf_uestc_A.pth"):
        torch.save(public(file), tmp_path / "w.pth")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models.load(tmp_path / "w.pth", **(options if "tf" in file else {}))


@pytest.mark.parametrize("kind", ["gray_unit", "gray_half"])
def test_255_scaled_weights_in_another_convention(
    public: Callable[[str], dict[str, Tensor]], tmp_path: Path, kind: str
) -> None:
    torch.save(public("mcnn_shtechA_660.h5"), tmp_path / "w.pth")
    text = _warned(tmp_path / "w.pth", input=kind)
    assert f"as input='{kind}' scale=1; plausible in another convention: input='gray255' (" in text


def test_unit_scaled_weights_fed_255(
    public: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    """The same network trained on grey of [0,1]: its first kernels are 255 times as large."""
    state = public("mcnn_shtechA_660.h5")
    for branch in (1, 2, 3):
        state[f"branch{branch}.0.conv.weight"] *= 255.0
    torch.save(state, tmp_path / "w.pth")
    assert "another convention: input='gray_unit' (36.9)" in _warned(tmp_path / "w.pth")


@pytest.mark.parametrize("factor", [64, 100])
def test_output_scales(
    public: Callable[[str], dict[str, Tensor]], tmp_path: Path, factor: int
) -> None:
    state = public("mcnn_shtechA_660.h5")
    for part in ("weight", "bias"):
        state[f"fuse.0.conv.{part}"] *= factor
    torch.save(state, tmp_path / "w.pth")
    text = _warned(tmp_path / "w.pth")
    assert f"scale={1 / factor:.6g} (36.9)" in text
    loaded = models.load(tmp_path / "w.pth", scale=1 / factor)
    assert probe_result(loaded).count == pytest.approx(36.92311, rel=2e-3)


def test_missing_normalisation_and_the_other_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A darkness counter in CSRNet's keys, trained on RGB of [0,1] and on full-size maps."""
    monkeypatch.setattr(vgg, "FRONTEND", (3, None, 3, None, 3, None, 3))
    monkeypatch.setattr(vgg, "BACKEND", (3,))

    def built(**options: object) -> CounterModel:
        counter = models.create("csrnet", **options).eval()
        convolutions = [m for m in counter.net.modules() if isinstance(m, nn.Conv2d)]
        for index, convolution in enumerate(convolutions):
            nn.init.zeros_(convolution.weight)
            for channel in range(convolution.out_channels):
                convolution.weight.data[
                    channel, channel, *(s // 2 for s in convolution.kernel_size)
                ] = 1
            if index == 0:
                # Darker than 0.45: a disc, not the ground.
                convolution.weight.data.neg_()
                nn.init.constant_(convolution.bias, 0.45)
        return counter

    right = built(input="rgb_unit")
    with torch.no_grad():
        right.net.output_layer.weight *= HEADS / probe_result(right).count
    assert probe_result(right).plausible
    for variant, expected in (("leeyeehoo", "input='rgb_unit'"), ("commissarma", "rgb_unit")):
        wrong = models.create("csrnet", variant=variant).eval()
        wrong.net.load_state_dict(right.net.state_dict())
        message = diagnose(wrong)
        assert message is not None
        assert expected in message
    assert diagnose(right) is None
    # The same weights on the other variant's input: only the variant shows that each cell is one.
    other = built(variant="commissarma", input="rgb_unit")
    other.net.load_state_dict(right.net.state_dict())
    assert "variant='leeyeehoo' input='rgb_unit'" in str(diagnose(other))


@pytest.mark.long
def test_random_weights_are_left_alone_but_for_chance() -> None:
    """The published initialisation always; larger weights fall in now and then."""
    torch.manual_seed(0)
    assert diagnose(models.create("mcnn").eval()) is None
    alarms = 0
    for _ in range(10):
        counter = models.create("mcnn").eval()
        for parameter in counter.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
        alarms += diagnose(counter) is not None
    assert alarms <= 4


# --- weights metadata


def test_a_metadata_tells_what_the_counter_is() -> None:
    counter = models.load("mcnn-synthetic")
    content = weights_metadata(counter, {"data": "scenes"})
    assert (content["model"], content["stride"], content["data"]) == ("mcnn", 4, "scenes")
    assert content["options"] == counter.options()
    assert content["probe_count"] == probe_result(counter).count
    assert content["blank_count"] == probe_result(counter).blank


def test_a_metadata_beside_foreign_weights(counter: CounterModel, tmp_path: Path, refused) -> None:
    """It states the options that keys do not show, and is checked."""
    path = tmp_path / "w.pth"
    torch.save(counter.net.state_dict(), path)
    right = models.create("mcnn", input="gray_half", final_relu=False).eval()
    right.net.load_state_dict(counter.net.state_dict())
    content = weights_metadata(right, {"data": "somewhere"})
    beside(path).write_text(json.dumps(content))
    loaded = models.load(path)
    assert loaded.options() == right.options()
    assert loaded.origin == "mcnn by its metadata (26 tensors of w.pth)"
    refused(path, "was trained with input='gray_half', got input='gray255'", input="gray255")
    for name, wrong in (("probe_checksum", 1e6), ("blank_count", 1e6), ("stride", 8)):
        beside(path).write_text(json.dumps({**content, name: wrong}))
        refused(path, "the metadata states")
    beside(path).write_text("{")
    refused(path, "is not readable weights metadata")
    beside(path).write_text("[1]")
    refused(path, "must be a JSON object")


def test_what_was_recognised_is_reported(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    loaded = models.load(shared / "data/weights/mcnn_shtechA_660.h5")
    assert loaded.origin.startswith("mcnn by its content: mcnn_shtechA_660.h5, svishwa")
    torch.save({"net": models.create("cmtl").net.state_dict()}, tmp_path / "w.pth")
    assert models.load(tmp_path / "w.pth").origin == "cmtl by its keys (56 tensors of w.pth)"
    assert models.create("mcnn").origin == "fresh"


def test_half_precision_copies_are_recognised(shared: Path, tmp_path: Path) -> None:
    state = read_weights(shared / "data/weights/mcnn_tf_uestc_A.pth").state
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    loaded = models.load(tmp_path / "half.pth")
    assert loaded.origin.startswith("mcnn by its content: mcnn_tf_uestc_A.pth")
    assert loaded.options()["input"] == "gray_half"


def test_what_the_keys_do_not_show_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    narrow.narrow(monkeypatch)
    counter = narrow.create("csrnet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        torch.save(counter.net.state_dict(), tmp_path / "w.pth")
        loaded = models.load(tmp_path / "w.pth")
        assert loaded.origin.endswith("; not shown by the keys: variant='leeyeehoo'")
        assert "not shown" not in models.load(tmp_path / "w.pth", variant="commissarma").origin
        torch.save({f"CCN.{k}": v for k, v in counter.net.state_dict().items()}, tmp_path / "w.pth")
        assert models.load(tmp_path / "w.pth").options()["variant"] == "c3"


def test_metadatas_without_a_model(counter: CounterModel, tmp_path: Path, refused) -> None:
    """The keys show the model; the rest of the metadata holds all the same."""
    path = tmp_path / "w.pth"
    torch.save(counter.net.state_dict(), path)
    half = models.create("mcnn", input="gray_half").eval()
    half.net.load_state_dict(counter.net.state_dict())
    content = {"options": {"input": "gray_half"}, "probe_count": probe_result(half).count}
    beside(path).write_text(json.dumps(content))
    assert models.load(path).options()["input"] == "gray_half"
    assert models.load(path, name="mcnn").options()["input"] == "gray_half"
    beside(path).write_text(json.dumps({**content, "probe_count": 1e6}))
    refused(path, r"the metadata states a count of 1e\+06")
    beside(path).write_text(json.dumps({"probe_cout": 3.0}))
    refused(path, "unknown entry 'probe_cout'; 'probe_count' is meant")
    beside(path).write_text(json.dumps({"data": "somewhere"}))
    with pytest.warns(UserWarning, match="states no count on the probe image"):
        models.load(path)


def test_free_options_change_after_the_check(tmp_path: Path) -> None:
    counter = models.create("cmtl").eval()
    models.save(counter, tmp_path / "cmtl.npz", metadata={})
    fine = models.load(tmp_path / "cmtl.npz", stride=1, count_range=[1, 90])
    assert (fine.stride, fine.options()["count_range"]) == (1, [1.0, 90.0])
    assert torch.equal(fine.net.base_layer[0].conv.weight, counter.net.base_layer[0].conv.weight)


def test_weights_that_overflow(counter: CounterModel, tmp_path: Path, refused) -> None:
    for parameter in counter.parameters():
        nn.init.constant_(parameter, 1e30)
    torch.save(counter.net.state_dict(), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "overflows on the probe image")
