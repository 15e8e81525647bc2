"""``python -m pycc.models`` as users run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support import narrow
from torch import Tensor, nn

from pycc import models
from pycc.commands import main
from pycc.models import MODELS, CounterModel
from pycc.models.probe import probe_count


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main("models", list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {*models.names(), *models.builtin()}
    assert "16,263,489 parameters, stride  8, receptive field 284 pixels" in lines["csrnet"]
    assert "receptive field the whole image" in lines["can"]


@pytest.mark.parametrize("name", models.names())
def test_show(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, "show", name)
    assert code == 0
    assert "recipe           " in out
    assert "  density " in out


def test_show_options(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "csrnet", "--option", "variant=commissarma")
    assert "CommissarMa/CSRNet-pytorch" in out
    _, out, _ = run(capsys, "show", "csrnet", "--option", "variant=c3")
    assert "csrnet: no published training recipe" in out


def test_check(capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    pytest.importorskip("h5py")
    path = shared / "data/weights/mcnn_shtechA_660.h5"
    code, out, err = run(capsys, "check", str(path))
    assert (code, err) == (0, "")
    assert "recognised       mcnn by its content: mcnn_shtechA_660.h5" in out
    assert "probe image      36.923 people for 32 heads" in out
    assert "mae              110.2" in out
    assert out.endswith("verdict          agrees with its metadata\n")


def test_check_finds_a_wrong_convention(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = models.load("mcnn-synthetic").net.state_dict()
    state["fuse.0.conv.weight"] = state["fuse.0.conv.weight"] * 100
    state["fuse.0.conv.bias"] = state["fuse.0.conv.bias"] * 100
    torch.save(state, tmp_path / "w.pth")
    code, out, err = run(capsys, "check", str(tmp_path / "w.pth"))
    assert code == 1
    assert "verdict          wrong convention: counts" in out
    assert err.startswith("warning: weights: ")
    assert err.count("\n") == 1
    code, out, _ = run(capsys, "check", str(tmp_path / "w.pth"), "--option", "scale=0.01")
    assert code == 0
    assert out.endswith("verdict          plausible\n")
    torch.manual_seed(0)
    torch.save(models.create("mcnn").net.state_dict(), tmp_path / "w.pth")
    code, out, _ = run(capsys, "check", str(tmp_path / "w.pth"))
    assert code == 0
    assert "no known convention makes it see the drawn heads" in out


def test_check_measures_the_field_of_a_family_from_outside(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with MODELS.restored():

        @MODELS.register("tiny")
        class Tiny(CounterModel):
            """One convolution: 9 pixels around a cell of 4 need 12."""

            name = "tiny"

            def __init__(self, *, field: int = 12) -> None:
                net = nn.Sequential(nn.Conv2d(3, 1, 9, padding=4), nn.AvgPool2d(4))
                super().__init__(net, stride=4, receptive_field=field)

            def preprocess(self, images: Tensor) -> Tensor:
                return images.flip(1)

            @classmethod
            def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
                return {} if set(state) == {"0.weight", "0.bias"} else None

        torch.save(models.create("tiny").net.state_dict(), tmp_path / "w.pth")
        code, out, _ = run(capsys, "check", str(tmp_path / "w.pth"))
        assert code == 0
        assert "options          none\ninput            its own preprocess, output scale 1\n" in out
        assert "measured field   12 pixels\n" in out
        code, out, _ = run(capsys, "check", str(tmp_path / "w.pth"), "--option", "field=8")
    assert code == 1
    assert "wrong receptive field: declared are 8 pixels, measured 12 pixels; its cert" in out


def test_check_states_what_keys_do_not_show(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bayesian Loss and Generalized Loss have the same keys, and different counts."""
    narrow.narrow(monkeypatch)
    counter = narrow.positive(narrow.create("vgg19"))
    path = tmp_path / "w.pth"
    torch.save(counter.net.state_dict(), path)
    other = models.create("vgg19", variant="generalized_loss").eval()
    other.net.load_state_dict(counter.net.state_dict())
    _, out, _ = run(capsys, "check", str(path))
    assert "not shown by the keys: variant='bl'\n" in out
    line = next(line for line in out.splitlines() if line.startswith("or, with"))
    assert f"variant='generalized_loss': {probe_count(other):.5g} people, bare ground" in line
    _, out, _ = run(capsys, "check", str(path), "--option", "variant=generalized_loss")
    assert "or, with" not in out
    assert "not shown" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "pycc models: expected one of list, show, check, export, got none"),
        (["show", "vgg"], "unknown model 'vgg'; known: can"),
        (["show", "mcnn", "--option", "depth=3"], "unknown option 'depth'"),
        (["show", "csrnet", "--option", "variant=x"], "variant must be 'leeyeehoo' or"),
        (["check", "none.pth"], "/none.pth; built-in weights: mcnn-synthetic\n"),
        (["check", "mcnn-syntetic"], "does not exist; did you mean 'mcnn-synthetic'?"),
        (["show", "mcnn-syntetic"], "; did you mean 'mcnn-synthetic'?"),
        (["check", "mcnn-synthetic", "--model", "csrnet"], "is of model 'mcnn', not 'csrnet'"),
        (["export", "mcnn-synthetic", "x.pt"], "must end in .onnx"),
        (["export", "mcnn-synthetic", "x.onnx", "--height", "two"], "invalid int value"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.long
def test_export_from_a_shell(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    target = tmp_path / "net.onnx"
    command = [sys.executable, "-m", "pycc.models", "export", "mcnn-synthetic", str(target)]
    done = subprocess.run(
        [*command, "--height", "64", "--width", "96"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert f"{target}: images [N,3,64,96] in [0,1] -> people per cell of 4x4 pixels" in done.stdout
    assert target.is_file()


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_bad_weights_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = models.load("mcnn-synthetic").net.state_dict()
    key = "fuse.0.conv.bias"
    cases: list[tuple[object, str]] = [
        ({**state, key: torch.full((1,), torch.nan)}, "holds NaN or infinity"),
        ({"frontend.0.weight": torch.zeros(64, 3, 3, 3)}, "does not fit csrnet"),
        ({"model": _Runs()}, "could run code"),
        ({}, "holds no tensors"),
    ]
    for content, message in cases:
        torch.save(content, path)
        code, out, err = run(capsys, "check", str(path))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    torch.save(state, path)
    intact = path.read_bytes()
    for damaged in (intact[: len(intact) // 2], b""):
        path.write_bytes(damaged)
        code, out, err = run(capsys, "check", str(path))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: weights: {path} ")
