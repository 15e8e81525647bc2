"""``python -m pycc.data`` as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.processes import messages

import pycc.data
from pycc.commands import main
from pycc.data.target import targets


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    root = tmp_path / "crowd"
    for number, (split, name) in enumerate((("train", "a"), ("train", "b"), ("test", "c"))):
        (root / split).mkdir(parents=True, exist_ok=True)
        pixels = np.full((10, 20, 3), (number, 2, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / f"{name}.png")
        (root / split / f"{name}.json").write_text(json.dumps([[1.0, 2.0]] * (number + 1)))
    return root


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main("data", [str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_inspect(capsys: pytest.CaptureFixture[str], crowd: Path) -> None:
    code, out, err = run(capsys, "inspect", crowd)
    assert (code, err) == (0, "")
    assert out.startswith(f"{crowd}, layout folder\n")
    assert out.endswith("verdict: intact\n")
    code, out, err = run(capsys, "inspect", crowd, "--split", "train", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert list(facts["splits"]) == ["train"]
    assert facts["splits"]["train"]["heads"] == {"total": 3, "median": 1.5, "min": 1, "max": 2}


def test_images_are_read_as_requested(
    capsys: pytest.CaptureFixture[str], crowd: Path, tmp_path: Path
) -> None:
    grey = np.full((10, 20), 4095, np.uint16)
    Image.fromarray(grey).save(crowd / "train" / "a.png")
    code, _, err = run(capsys, "inspect", crowd)
    assert code == 0
    assert err.count("warning: ") == 1
    assert "a.png: its highest value is 4095" in err
    assert run(capsys, "inspect", crowd, "--bit-depth", 12)[::2] == (0, "")
    code, _, err = run(capsys, "convert", crowd, tmp_path / "out", "--bit-depth", 12)
    assert (code, err) == (0, "")
    assert float(pycc.data.load_image(tmp_path / "out" / "train" / "a.png").min()) == 1.0
    code, out, _ = run(capsys, "inspect", crowd, "--max-image-pixels", 199)
    assert code == 1
    assert "max_image_pixels=200 (--max-image-pixels 200) reads it" in out
    code, _, err = run(capsys, "inspect", crowd, "--bit-depth", 17)
    assert (code, err.count("\n")) == (2, 1)
    assert "(--bit-depth) must be within [1, 16], got 17" in err


def test_inspect_fails_on_what_is_broken_or_leaked(
    capsys: pytest.CaptureFixture[str], crowd: Path
) -> None:
    (crowd / "train" / "a.json").write_text("?")
    code, out, err = run(capsys, "inspect", crowd)
    assert (code, err) == (1, "")
    assert "\nbroken: train: " in out
    (crowd / "train" / "a.json").write_text("[]")
    (crowd / "test" / "c.png").write_bytes((crowd / "train" / "b.png").read_bytes())
    code, out, err = run(capsys, "inspect", crowd)
    assert (code, err) == (1, "")
    assert "\nleak: test c = train b\n" in out
    code, out, _ = run(capsys, "inspect", crowd, "--json")
    assert code == 1
    assert json.loads(out)["identical"] == [
        [{"split": "test", "name": "c"}, {"split": "train", "name": "b"}]
    ]


def test_points_outside_are_a_figure_and_no_fault(
    capsys: pytest.CaptureFixture[str], crowd: Path
) -> None:
    (crowd / "train" / "a.json").write_text("[[1, 1], [99, 1]]")
    code, out, err = run(capsys, "inspect", crowd, "--split", "train", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["splits"]["train"]["points_outside"] == 1


@pytest.mark.parametrize("layout", targets.names())
def test_converted_data_opens_again(
    capsys: pytest.CaptureFixture[str], crowd: Path, tmp_path: Path, layout: str
) -> None:
    target = tmp_path / "out"
    flags = ("--layout", layout, "--max-side", "10")
    code, out, err = run(capsys, "convert", crowd, target, *flags)
    assert (code, err) == (0, "")
    assert run(capsys, "inspect", target)[0] == 0
    suffix = "_data" if layout == "shanghaitech" else ""
    assert out.splitlines() == [
        f"{target}/test{suffix}: 1 images, 1 of them resized, 3 heads",
        f"{target}/train{suffix}: 2 images, 2 of them resized, 3 heads",
    ]
    for split in ("train", "test"):
        new = pycc.data.open(target, split=split)
        assert [s.count for s in new] == [s.count for s in pycc.data.open(crowd, split=split)]
        assert new[0].image.shape == (3, 5, 10)


def test_a_part(capsys: pytest.CaptureFixture[str], crowd: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    code, out, _ = run(capsys, "convert", crowd, target, "--split", "train", "--max-images", "1")
    assert (code, out) == (0, f"{target}/train: 1 images, 1 heads\n")
    (crowd / "train" / "a.json").write_text("?")
    code, out, err = run(capsys, "convert", crowd, tmp_path / "other", "--on-error", "skip")
    assert code == 0
    assert err.startswith("warning: skipped: ")
    assert f"{tmp_path}/other/train: 1 images, 2 heads" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "pycc data: expected one of inspect, convert, got none"),
        (["inspect"], "the following arguments are required: PATH"),
        (["inspect", "nowhere"], "nowhere: no such file or folder"),
        (["inspect", "synthetic"], "built-in scenes are not files"),
        (["inspect", "CROWD", "--split", "val"], "has splits test, train, got 'val'"),
        (["inspect", "CROWD", "--limit", "3"], "unknown flag --limit"),
        (["convert", "CROWD"], "the following arguments are required: OUT"),
        (["convert", "CROWD", "CROWD"], "expected a new or an empty folder"),
        (
            ["convert", "CROWD", "OUT", "--layout", "nwpu"],
            "--layout: expected one of folder, npy, cclabeler, coco, cvat, labelme, mall, p2pnet, "
            "shanghaitech, via, via_csv, got 'nwpu'",
        ),
        (["convert", "CROWD", "OUT", "--max-images", "0"], "limit must be at least 1, got 0"),
        (["convert", "CROWD", "OUT", "--max-side", "x"], "invalid int value: 'x'"),
        (["convert", "CROWD", "OUT", "--split", "val"], "has splits test, train, got 'val'"),
    ],
)
def test_bad_usage(
    capsys: pytest.CaptureFixture[str], crowd: Path, argv: list[str], message: str
) -> None:
    places = {"CROWD": crowd, "OUT": crowd.parent / "out"}
    code, out, err = run(capsys, *(places.get(word, word) for word in argv))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (crowd.parent / "out").exists()


def test_from_a_shell(crowd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pycc.data", "inspect", str(crowd)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, messages(done.stderr)) == (0, [])
    assert done.stdout.endswith("verdict: intact\n")
