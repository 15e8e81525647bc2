"""ONNX and TorchScript: counters written, and foreign networks as black boxes."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pycc import attack, models
from pycc.types import Sample

pytestmark = pytest.mark.command

IMAGES = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    assert models.export_onnx(counter_of_boxes(), path, shape=(96, 128)) < 1e-5
    return path


def counter_of_boxes() -> models.CounterModel:
    """The built-in counter, scaled so that it counts about as many as the test image has heads."""
    counter = models.load("mcnn-synthetic")
    counter.scale = 2.0
    return counter


@pytest.mark.long
@torch.no_grad()
def test_the_file_counts_as_the_counter_does(exported: Path) -> None:
    counter = counter_of_boxes()
    loaded = models.load(exported, stride=4)
    assert loaded.origin == f"black_box of {exported}"
    expected = counter(IMAGES)
    density = loaded(IMAGES)
    assert float((density - expected).abs().max()) <= 1e-5 * float(expected.max())
    assert [path.name for path in exported.parent.iterdir()] == ["net.onnx"]
    # The network's own convention inside: a wrong one from outside is reported.
    with pytest.warns(UserWarning, match=r"another convention: .*input='rgb_unit' \(31\.0\)"):
        models.load(exported, stride=4, input="rgb255")


@pytest.mark.command
def test_counts_alone_are_enough_for_a_query_attack(exported: Path) -> None:
    counter = models.load(exported, stride=4)
    sample = Sample("one", IMAGES[0], torch.tensor([[40.0, 30.0]], dtype=torch.float64))
    query = attack.attacks["query"](patch_size=16, steps=30, objective="over")
    run = attack.run(counter, [sample], query, pgd=None, checks=False)
    counts = {record["condition"]: record["count"] for record in run.run.records}
    assert counts["query"] > counts["grey"]
    with pytest.raises(ValueError, match="gives no gradient"):
        attack.run(counter, [sample], attack.APAM(patch_size=16, steps=2), pgd=None, checks=False)


def test_torchscript(tmp_path: Path) -> None:
    counter = models.load("mcnn-synthetic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(counter.net, torch.rand(1, 1, 64, 96)), tmp_path / "w.pt")
    loaded = models.black_box(tmp_path / "w.pt", stride=4, input="gray255")
    density = loaded(IMAGES)
    torch.testing.assert_close(density, counter(IMAGES).detach())
    assert not density.requires_grad
    by_name = models.load(tmp_path / "w.pt", name="black_box", stride=4, input="gray255")
    assert torch.equal(by_name(IMAGES), density)


def test_a_lack_of_memory_is_no_fault_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1 << 45) + x.sum()

    path = tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Large()).save(path)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        models.black_box(path, stride=4)(torch.rand(1, 3, 8, 8))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(torch.jit, "load", fail)
    with pytest.raises(MemoryError, match="no room"):
        models.black_box(path, stride=4)


def test_bad_files_and_options(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    (tmp_path / "bad.pt").write_bytes(b"nothing of the kind")
    for name in ("bad.onnx", "bad.pt"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read") as caught:
            models.black_box(tmp_path / name, stride=4)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.onnx"):
        models.black_box(tmp_path / "none.onnx", stride=4)
    with pytest.raises(ValueError, match="needs the option stride"):
        models.load(exported)
    for stride in ("abc", 4.5):
        with pytest.raises(ValueError, match="stride must be an integer of at least 1, got"):
            models.load(exported, stride=stride)
    with pytest.raises(ValueError, match="unknown option 'variant'; known: stride, input"):
        models.load(exported, stride=4, variant="gray")
    # A file for one size of image reports it when it gets another.
    with pytest.raises(ValueError, match=r"net\.onnx: .*dimension"):
        models.black_box(exported, stride=4)(torch.rand(1, 3, 32, 32))


@pytest.mark.long
def test_export_leaves_nothing_when_it_fails(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    counter = models.load("mcnn-synthetic")
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        models.export_onnx(counter, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="at least 4x4 pixels, got 2x96"):
        models.export_onnx(counter, tmp_path / "net.onnx", shape=(2, 96))
    with pytest.raises(ValueError, match="expected a torch network, got a black box"):
        models.export_onnx(models.black_box(exported, stride=4), tmp_path / "net.onnx")
    real = models.exchange._Onnx.forward
    monkeypatch.setattr(models.exchange._Onnx, "forward", lambda self, x: real(self, x) * 1.001)
    with pytest.raises(ValueError, match=r"onnxruntime's map differs by 0\.001 .* nothing is"):
        models.export_onnx(counter, tmp_path / "net.onnx", shape=(64, 96))
    for module in ("onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=r"pip install 'pycc\[onnx\]'"):
            models.export_onnx(counter, tmp_path / "net.onnx", shape=(64, 96))
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_no_image(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    for shape, dtype in (([1, 3], kind.FLOAT), ([1, 3, 8, 8], kind.INT64)):
        value = helper.make_tensor_value_info("x", dtype, shape)
        out = helper.make_tensor_value_info("y", dtype, shape)
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, str(tmp_path / "w.onnx"))
        with pytest.raises(ValueError, match=r"one float input \[N,C,H,W\], got x tensor"):
            models.black_box(tmp_path / "w.onnx", stride=1)


def test_several_outputs_and_no_channel(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean(1), x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Two()), tmp_path / "w.pt")
    counter = models.black_box(tmp_path / "w.pt", stride=1, scale=0.5)
    density = counter(IMAGES).numpy()
    np.testing.assert_allclose(density, 0.5 * IMAGES.mean(1, keepdim=True).numpy(), rtol=1e-6)


def test_a_script_that_fails_is_one_line(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 3)), tmp_path / "grey.pt")
    with pytest.raises(ValueError, match=r"grey\.pt: .*channels") as caught:
        models.black_box(tmp_path / "grey.pt", stride=1)(IMAGES)
    assert "\n" not in str(caught.value)


def test_a_metadata_beside_a_black_box(exported: Path) -> None:
    counter = models.load(exported, stride=4)
    content = {"options": {"stride": 4}, "probe_count": models.probe.probe_result(counter).count}
    file = exported.with_name("net.onnx.json")
    file.write_text(json.dumps(content))
    try:
        assert models.load(exported).metadata == content
        with pytest.raises(ValueError, match="was trained with stride=4, got stride=8"):
            models.load(exported, stride=8)
        file.write_text(json.dumps({**content, "probe_count": 5.0}))
        with pytest.raises(ValueError, match="states a count of 5 on the probe image"):
            models.load(exported)
    finally:
        file.unlink()
