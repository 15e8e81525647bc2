"""TorchScript archives are read, not run."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pycc import models
from pycc.models.archive import is_script, read_script
from pycc.models.weights import read_weights


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    """A module of nested modules, shared storage, buffers and half precision, as an archive."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Linear(4, 2)))
    module.half()
    module.register_buffer("size", torch.tensor(224))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_the_same_tensors_as_torchs_own_loader(scripted: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(scripted).state_dict()
    assert is_script(scripted)
    state = read_script(scripted)
    assert set(state) == set(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value)
    assert set(read_weights(scripted).state) == set(expected)


def test_other_files_are_no_scripts(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    (tmp_path / "empty.pt").write_bytes(b"")
    assert not is_script(tmp_path / "w.pth")
    assert not is_script(tmp_path / "empty.pt")


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)


def test_an_archive_that_asks_for_more_is_refused(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.pt"
    with zipfile.ZipFile(scripted) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl"):
                content = pickle.dumps(_Runs())
            target.writestr(name, content)
    refused(evil, "is refused: .* could run code")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_archive_is_one_line(scripted: Path, tmp_path: Path, refused) -> None:
    with zipfile.ZipFile(scripted) as source:
        names = [name for name in source.namelist() if "/data/" not in name]
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as target:
            for name in names:
                target.writestr(name, source.read(name))
    refused(tmp_path / "bad.pt", "cannot be read")
    (tmp_path / "half.pt").write_bytes(scripted.read_bytes()[:-200])
    refused(tmp_path / "half.pt", "is not a torch file|cannot be read|is refused")


def test_a_backbone_alone_needs_a_name(tmp_path: Path) -> None:
    front = models.create("csrnet").net.frontend.state_dict()
    path = tmp_path / "vgg16-397923af.pth"
    torch.save({f"features.{key}": value for key, value in front.items()}, path)
    with pytest.raises(ValueError, match=r"holds a backbone, not a counter: .* 'can' or 'csrnet'"):
        models.load(path)
    with pytest.warns(UserWarning, match=r"gives csrnet the first 10 .*; the rest is untrained"):
        counter = models.load(path, name="csrnet")
    assert not counter.training
    assert torch.equal(counter.net.frontend[0].weight, front["0.weight"])
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth: vgg: features\.0\.weight must be"):
        models.load(path, name="csrnet")
