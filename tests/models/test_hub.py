"""Weights in .safetensors files, and in folders and repositories of Hugging Face's layout."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pycc import models
from pycc.commands import main
from pycc.models.base import CounterModel

tensors_of = pytest.importorskip("safetensors.torch")
Refused = Callable[..., None]


def same(first: CounterModel, second: CounterModel) -> bool:
    a, b = first.net.state_dict(), second.net.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def converted() -> CounterModel:
    """A counter whose options leave no trace in its keys."""
    torch.manual_seed(5)
    counter = models.create("mcnn", input="gray_half", final_relu=False, scale=0.5)
    for parameter in counter.net.parameters():
        nn.init.uniform_(parameter, -0.004, 0.008)
    return counter.eval()


@pytest.mark.parametrize("target", ["w.safetensors", "folder", "new/folder"])
def test_what_is_saved_is_loaded(converted: CounterModel, tmp_path: Path, target: str) -> None:
    """With the options, from the file's header alone: config.json is for other programs."""
    path = tmp_path / target
    models.save(converted, path, metadata={"data": "drawn", "mae": 3.5})
    file = path / "model.safetensors" if "." not in target else path
    for source in (path, str(file)):
        loaded = models.load(source)
        assert same(loaded, converted)
        assert loaded.options() == converted.options()
        assert (loaded.metadata["data"], loaded.metadata["mae"]) == ("drawn", 3.5)
        assert not loaded.training
    assert tensors_of.load_file(file).keys() == converted.net.state_dict().keys()
    names = sorted(each.name for each in file.parent.iterdir())
    assert names == (["w.safetensors"] if file == path else ["config.json", "model.safetensors"])
    with pytest.raises(ValueError, match="trained with final_relu=False, got final_relu=True"):
        models.load(path, final_relu=True)


def test_files_of_other_programs(converted: CounterModel, tmp_path: Path, refused: Refused) -> None:
    """Prefixes, half precision and foreign entries; config.json or FILE.json may hold metadata."""
    state = {f"model.{k}": v.half().contiguous() for k, v in converted.net.state_dict().items()}
    file = tmp_path / "model.safetensors"
    tensors_of.save_file(state, file, {"format": "pt", "author": "somebody"})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "counter", "hidden_size": 3}))
    loaded = models.load(tmp_path)
    assert loaded.options()["input"] == "gray255"
    assert loaded.metadata == {}
    stated = {"model": "mcnn", "options": converted.options(), "stride": 4}
    config.write_text(json.dumps({"model_type": "counter", "pycc": stated}))
    for source in (tmp_path, file):
        with pytest.warns(UserWarning, match="the metadata states no count"):
            assert models.load(source).options() == converted.options()
    config.write_text(json.dumps({"pycc": {**stated, "probe_count": 1e6}}))
    refused(tmp_path, "states a count of 1e.06 on the probe image, got")
    config.write_text(json.dumps({"pycc": 3}))
    refused(tmp_path, r"config\.json: pycc must be a JSON object")
    config.write_text("{")
    refused(tmp_path, r"config\.json is not readable weights metadata")
    renamed = file.rename(tmp_path / "w.safetensors")  # config.json belongs to the layout
    assert models.load(renamed).metadata == {}
    (tmp_path / "w.safetensors.json").write_text(json.dumps(stated))
    with pytest.warns(UserWarning, match="the metadata states no count"):
        assert models.load(renamed).options() == converted.options()
    refused(tmp_path, r"is a folder without model\.safetensors")


def test_bad_files(converted: CounterModel, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "w.safetensors"
    models.save(converted, path, metadata={})
    content = path.read_bytes()
    path.rename(tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"is not a torch file but a \.safetensors file: rename it")
    path.write_bytes(content[: len(content) // 2])
    refused(path, "is not a readable .safetensors file: .*; it seems truncated")
    for broken in (b"", b"nothing of the kind", content[:7], b"\xff" * 8 + content[8:]):
        path.write_bytes(broken)
        refused(path, "is not")
    state = {key: value.contiguous() for key, value in converted.net.state_dict().items()}
    for header in ("3", "[]", "{"):
        tensors_of.save_file(state, path, {"pycc": header})
        refused(path, r"the metadata must be a JSON object|is not a readable \.safetensors file")
    tensors_of.save_file({"fuse.0.weight": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)
    refused(path, r"must be a dense tensor of float16, .*, got float8_e4m3fn")
    torch.save(state, path)
    refused(path, "is not a readable .safetensors file but a torch file: rename it to end in .pth")
    two = {f"{name}.{key}": value for name in ("a", "b") for key, value in state.items()}
    tensors_of.save_file({k: v.clone() for k, v in two.items()}, path)
    refused(path, r"several state dicts.*safetensors\.torch\.load_file\('w\.safetensors'\)")


def test_nothing_is_written_that_cannot_be(
    converted: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="the metadata must be JSON"):
        models.save(converted, tmp_path / "folder", metadata={"mae": float("nan")})
    models.save(converted, tmp_path / "kept.safetensors", metadata={})
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for name in ("folder", "w.safetensors"):
        with pytest.raises(ValueError, match=rf"writing .*{name} needs safetensors: pip install"):
            models.save(converted, tmp_path / name, metadata={})
    with pytest.raises(ValueError, match=r"reading .*needs safetensors: pip install 'pycc\[safet"):
        models.load(tmp_path / "kept.safetensors")
    models.save(converted, tmp_path / "w.npz", metadata={})  # needs nothing else
    assert {path.name for path in tmp_path.iterdir()} == {"kept.safetensors", "w.npz"}


# --- the hub


class _Hub(SimpleNamespace):
    """The two functions of huggingface_hub that are called, on a local folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder, calls=[])

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        self.calls.append((repo_id, revision, *allow_patterns))
        return str(self.folder)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None) -> str:
        self.calls.append((repo_id, revision, filename))
        if not (self.folder / filename).exists():
            raise LookupError(f"404 Client Error.\n\nEntry Not Found: {filename}")
        return str(self.folder / filename)


@pytest.fixture
def hub(converted: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Hub:
    models.save(converted, tmp_path / "copy", metadata={})
    fake = _Hub(tmp_path / "copy")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_names_of_the_hub(converted: CounterModel, hub: _Hub, refused: Refused) -> None:
    layout = ("config.json", "model.safetensors")
    assert same(models.load("hf://org/counter"), converted)
    assert same(models.load("hf://org/counter@v1.0", final_relu=False), converted)
    states: dict[str, Tensor] = converted.net.state_dict()
    (hub.folder / "old").mkdir()
    torch.save({"state_dict": states}, hub.folder / "old" / "best.pth")
    options = {"input": "gray_half", "final_relu": False, "scale": 0.5}
    assert same(
        models.load("hf://org/a.b-c_d@main/old/best.pth", name="mcnn", **options), converted
    )
    assert hub.calls == [
        ("org/counter", None, *layout),
        ("org/counter", "v1.0", *layout),
        ("org/a.b-c_d", "main", "old/best.pth"),
    ]
    refused("hf://org/counter/none.pth", "cannot be downloaded: 404 Client Error. Entry Not Found")
    hub.calls.clear()
    for name in ("hf://", "hf://org", "hf://org/", "hf://org/a@", "hf://org/a b", "hf://a/b@c@d"):
        refused(name, r"expected hf://OWNER/NAME\[@REVISION\]\[/FILE\], got hf://")
    assert hub.calls == []
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is a folder without model\.safetensors"):
        models.load("hf://org/counter")


def test_only_a_name_of_the_hub_downloads(
    hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    models.load("copy")
    for name in ("org/counter", "hf:/org/counter"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            models.load(name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        models.load(Path("hf://org/counter"))
    assert hub.calls == []
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf://org/counter", r"needs huggingface_hub: pip install 'pycc\[hub\]'")


def test_commands_take_names_of_the_hub(hub: _Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("models", ["check", "hf://org/counter"]) == 0
    assert "mcnn by its metadata (26 tensors of model.safetensors" in capsys.readouterr().out
    assert main("models", ["check", "hf://org"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_library_has_these_functions() -> None:
    """The fake above answers the calls as the real functions would take them."""
    library = pytest.importorskip("huggingface_hub")
    whole = inspect.signature(library.snapshot_download)
    whole.bind("org/counter", revision=None, allow_patterns=["config.json"])
    inspect.signature(library.hf_hub_download).bind("org/counter", "best.pth", revision="main")
