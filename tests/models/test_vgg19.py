"""VGG-19's counters against the published networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.published import close, images_of, published_input, published_state
from torch import Tensor, nn

from pycc import models
from pycc.grid import window_field
from pycc.models import vgg
from pycc.models.base import CounterModel
from pycc.models.metadata import beside, weights_metadata
from pycc.models.probe import probe_result

Fixture = Callable[[str], NpzFile]
FILES = {"bl": "BL", "dm_count": "DMCount", "generalized_loss": "GL"}
VARIANTS = list(FILES)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, the same wiring."""
    narrow.narrow(monkeypatch)


def published(fixture: Fixture, variant: str) -> tuple[CounterModel, NpzFile]:
    numbers = fixture(FILES[variant])
    with torch.device("meta"):
        counter = models.create("vgg19", variant=variant)
    counter.net.load_state_dict(published_state(numbers), assign=True)
    return counter.eval(), numbers


@pytest.mark.command
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture, variant: str) -> None:
    """Fixtures are in double precision: they and the originals in single differ by up to 8e-6."""
    counter, numbers = published(fixture, variant)
    net = counter.net.double()
    assert list(net.state_dict()) == [str(key) for key in numbers["keys"]]
    assert sum(p.numel() for p in net.parameters()) == 21_499_457 == numbers["n_params"]
    seen: dict[str, Tensor] = {}
    last = 3 if variant == "dm_count" else 4
    parts = {"features": net.features, "reg": net.reg_layer[3]}
    parts["pre"] = net.density_layer[0] if variant == "dm_count" else net.reg_layer[last]
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    before = "relu" if variant == "dm_count" else "abs"
    for case in range(len(numbers["seeds"])):
        output = net(published_input(numbers, case).double())
        if variant == "dm_count":
            output, normed = output
            assert close(normed, numbers[f"normed_{case}"], 1e-6)
        assert close(output, numbers[f"out_{case}"], 1e-6)
        assert close(seen["features"][:, :4], numbers[f"aux_features_{case}"], 1e-6)
        assert close(seen["reg"][:, :4], numbers[f"aux_reg_{case}"], 1e-6)
        assert close(seen["pre"], numbers[f"aux_pre_{before}_{case}"], 1e-6)


@pytest.mark.command
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_counts_are_the_published_ones_at_any_size(fixture: Fixture, variant: str) -> None:
    """From RGB in [0,1], in single precision; of 101x139 pixels the network counts 96x128."""
    counter, numbers = published(fixture, variant)
    for case, cells in enumerate([(12, 16), (20, 16), (12, 17)]):
        density = counter(images_of(numbers, case))
        expected = numbers[f"out_{case}"]
        assert density.shape[2:] == cells
        rows, columns = expected.shape[2:]
        assert close(density[..., :rows, :columns], expected)
        assert (density[..., columns:] == 0).all()
        assert float(density.double().sum()) == pytest.approx(numbers["counts"][case], rel=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_size_keeps_the_relation_of_map_and_image(variant: str) -> None:
    counter = narrow.positive(models.create("vgg19", variant=variant)).eval()
    for side in (16, 23, 24, 31, 32, 47):
        density = counter(torch.rand(1, 3, side, 40))
        assert density.shape == (1, 1, side // 8, 5)
        counted = side // 16 * 2
        assert (density[:, :, :counted, :4] > 0).all()
        assert (density[:, :, counted:] == 0).all()
        assert (density[..., 4:] == 0).all()
    with pytest.raises(ValueError, match=r"vgg19: images must be at least 16x16 pixels, got 15x40"):
        counter(torch.rand(1, 3, 15, 40))


@pytest.mark.usefixtures("small")
def test_vgg19_becomes_the_trunk() -> None:
    counter = models.create("vgg19")
    torch.manual_seed(0)
    trunk = counter.net.features.state_dict()
    archive = {f"features.{key}": torch.randn_like(value) for key, value in trunk.items()}
    archive["classifier.0.bias"] = torch.zeros(4096)
    head = counter.net.reg_layer[0].weight.clone()
    assert counter.adopt(archive) == "the first 16 convolutions of VGG-19 (32 of its tensors read)"
    for key, value in counter.net.features.state_dict().items():
        assert torch.equal(value, archive[f"features.{key}"])
    assert torch.equal(counter.net.reg_layer[0].weight, head)
    front = vgg.frontend()
    sixteen = {f"features.{key}": value for key, value in front.state_dict().items()}
    with pytest.raises(ValueError, match=r"features\.16\.weight .* got nothing; .* VGG-19 without"):
        counter.adopt(sixteen)
    with pytest.raises(ValueError, match="the front end is that of VGG-16 without"):
        models.create("csrnet").adopt(archive)


@pytest.mark.usefixtures("small")
def test_fresh_networks_let_something_through() -> None:
    torch.manual_seed(1)
    for variant in VARIANTS:
        counter = models.create("vgg19", variant=variant)
        features = counter.net.features(torch.randn(1, 3, 64, 64))
        assert 0.01 < float(features.detach().abs().mean()) < 100
        heads = [m for m in counter.net.reg_layer if isinstance(m, nn.Conv2d)]
        assert (heads[0].bias == 0).all() == (variant == "generalized_loss")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("variant", "margin"), [("bl", 150), ("generalized_loss", 142)])
def test_the_field_covers_both_kinds_of_cells(variant: str, margin: int) -> None:
    """Perturbed at all sixteen residues, along both axes."""
    counter = narrow.create("vgg19", variant=variant)
    assert models.measure_receptive_field(counter) == models.ReceptiveField(
        before=margin, after=margin, side=2 * margin + 8
    )
    assert counter.receptive_field == 2 * margin + 8
    assert (counter.period, window_field(counter)) == (16, None)


# --- weights


@pytest.fixture
def grown(small: None) -> dict[str, CounterModel]:
    """One counter of each variant; that of Generalized Loss has the weights of Bayesian Loss."""
    counters = {variant: narrow.create("vgg19", variant=variant) for variant in VARIANTS}
    counters["generalized_loss"].net.load_state_dict(counters["bl"].net.state_dict())
    return counters


@pytest.mark.filterwarnings("ignore:weights. .* plausible in another convention")
def test_variants_are_told_apart_as_far_as_files_show_them(
    grown: dict[str, CounterModel], tmp_path: Path
) -> None:
    """LWCC keeps weights under "model", trainings under "model_state_dict", both without prefix."""
    for variant, counter in grown.items():
        state = counter.net.state_dict()
        adam = torch.optim.Adam(counter.net.parameters())
        counter(torch.rand(1, 3, 32, 32)).sum().backward()
        adam.step()
        training = {"epoch": 3, "optimizer_state_dict": adam.state_dict()}
        for file, content in {
            "Bay_SHA.pth": {"model": state},
            "600_ckpt.tar": {**training, "model_state_dict": state},
            "best_model.pth": state,
        }.items():
            torch.save(content, tmp_path / file)
            loaded = models.load(tmp_path / file)
            assert loaded.options() == counter.options()
            assert torch.equal(loaded.net.features[0].weight, counter.net.features[0].weight)
            note = f"; not shown by the keys: variant='{variant}'"
            assert loaded.origin.endswith(note) == (variant != "dm_count")
    path = tmp_path / "w.pth"
    # Sorted, as converters write them, nothing shows Generalized Loss: it has to be requested.
    state = dict(sorted(grown["generalized_loss"].net.state_dict().items()))
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    assert models.load(path).options()["variant"] == "bl"
    assert models.load(path, variant="generalized_loss").options()["variant"] == "generalized_loss"


def test_a_count_of_the_probe_image_decides(
    grown: dict[str, CounterModel], tmp_path: Path, refused: Callable[..., None]
) -> None:
    path = tmp_path / "w.pth"
    state = dict(sorted(grown["bl"].net.state_dict().items()))
    torch.save(state, path)
    for variant in ("bl", "generalized_loss"):
        counts = probe_result(grown[variant]).json()
        beside(path).write_text(json.dumps(counts))
        loaded = models.load(path)
        assert loaded.options()["variant"] == variant
        assert loaded.origin.endswith(f"; variant='{variant}' by its count of the probe image")
    beside(path).write_text(json.dumps({**counts, "options": {"variant": "bl"}}))
    refused(path, "the metadata states a count of")
    beside(path).write_text(json.dumps({"probe_count": 1e6}))
    refused(path, r"the metadata states a count of 1e\+06 on the probe image")
    content = weights_metadata(grown["generalized_loss"], {"data": "somewhere"})
    beside(path).write_text(json.dumps(content))
    assert models.load(path).options() == grown["generalized_loss"].options()
    refused(path, "was trained with variant='generalized_loss', got variant='bl'", variant="bl")


def test_weights_of_another_variant_or_family_are_named(
    grown: dict[str, CounterModel], tmp_path: Path, refused: Callable[..., None]
) -> None:
    path = tmp_path / "w.pth"
    torch.save(grown["dm_count"].net.state_dict(), path)
    message = "does not fit vgg19 .*; its keys are those of variant='dm_count'"
    refused(path, message, variant="bl")
    refused(path, "does not fit mcnn .*; its keys are those of 'vgg19'", name="mcnn")
    torch.save(grown["bl"].net.state_dict(), path)
    refused(path, "does not fit vgg19 .*those of variant='bl'", variant="dm_count")
    with pytest.raises(ValueError, match="vgg19: variant must be 'bl' or 'dm_count' or 'general"):
        models.create("vgg19", variant="gl")
    with pytest.raises(ValueError, match="vgg19: unknown option 'down'"):
        models.create("vgg19", down=16)
