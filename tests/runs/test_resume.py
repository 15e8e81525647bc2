"""Every command that resumes a run refuses data that changed, and names what changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.marks import long

from pycc import data
from pycc.commands import main
from pycc.data.dataset import data_fingerprint
from pycc.types import Sample

pytestmark = pytest.mark.command

MCNN = ["--weights", "mcnn-synthetic", "--threads", "1", "--no-pictures"]
QUICK = ["--epochs", "1", "--crop", "64x64", "--lr", "1e-6"]
COMMANDS = {
    "attack": ["--data", "own", "--patch-size", "8", "--steps", "1", "--pgd-steps", "0",
               "--no-checks"],
    "attack, universal": [
        "--attack", "universal", "--data", "own", "--patch-size", "8", "--steps", "1",
        "--pgd-steps", "0", "--no-checks",
    ],
    "certify": [
        "--data", "own", "--patch-size", "8", "--method", "masked", "--allowance", "5",
    ],
    "certify, calibrated": ["--data", "own", "--calibration-data", "other", "--patch-size", "8"],
    "train": ["--data", "own", *QUICK, "--crops", "1", "--validation-share", "0.34",
              "--test-data", "other", "--test-split", "test"],
    "backdoor run": [
        "--data", "own", "--test-data", "other", "--extra-data", "third", "--extra-fraction", "1",
        "--strategy", "minus", "--fraction", "0.5", "--trigger", "blend", "--defense-epochs", "1",
        *QUICK,
    ],
    "backdoor evaluate": ["--data", "own", "--strategy", "minus", "--trigger", "blend"],
    "backdoor train": ["--data", "own", *QUICK],
    "backdoor defend fine-tuning": ["--data", "own", *QUICK],
}  # fmt: skip
"""By its name, each command as quick as it goes; ``own``, ``other`` and ``third`` are folders."""
FOLDERS = {
    "certify, calibrated": ("own", "other"),
    "train": ("own", "other"),
    "backdoor run": ("own", "other", "third"),
}


def images(folder: Path, split: str) -> None:
    """Three scenes, no two alike, with their heads."""
    folder.mkdir()
    for sample in data.open("synthetic", split=split, limit=3, shape=(64, 96), heads=9):
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))


def move_a_head(image: Path) -> None:
    points = json.loads(image.with_suffix(".json").read_text())
    points[0][0] = 95.0 - points[0][0]
    image.with_suffix(".json").write_text(json.dumps(points))


def change_a_pixel(image: Path) -> None:
    pixels = data.load_image(image)
    pixels[1, 5, 7] = 1.0 - pixels[1, 5, 7]
    data.save_image(image, pixels)


SLOW = ("attack, universal", "backdoor run")
EDITS: dict[str, Callable[[Path], None]] = {
    "the head annotations changed": move_a_head,
    "the pixels of the images changed": change_a_pixel,
}


@pytest.mark.parametrize("name", [*(name for name in COMMANDS if name not in SLOW), *long(*SLOW)])
def test_a_run_whose_data_changed_is_refused(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, split in (("own", "train"), ("other", "test"), ("third", "val")):
        images(tmp_path / folder, split)
    if name == "attack, universal":  # is trained on another split than it is measured on
        (tmp_path / "own").rename(tmp_path / "train")
        (tmp_path / "own").mkdir()
        (tmp_path / "train").rename(tmp_path / "own" / "train")
        (tmp_path / "other").rename(tmp_path / "own" / "test")
    command, *steps = name.split(",")[0].split()
    weights = MCNN if "train" not in steps and "defend" not in steps else MCNN[:-1]
    assert main(command, [*steps, *COMMANDS[name], *weights, "--out", "run"]) in (0, 1)
    capsys.readouterr()
    folders = FOLDERS.get(name, ("own",))
    files = [file for folder in folders for file in sorted((tmp_path / folder).rglob("*.png"))]
    assert len(files) == 3 * len(folders) or name == "attack, universal"
    for image in files:
        known = {file: file.read_bytes() for file in (image, image.with_suffix(".json"))}
        for message, edit in EDITS.items():
            edit(image)
            assert main(command, [*steps, "--resume", "run"]) == 2, (image, message)
            errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
            assert len(errors) == 1
            assert message in errors[0]
            assert not any(other in errors[0] for other in EDITS if other != message)
            for file, content in known.items():
                file.write_bytes(content)
    assert main(command, [*steps, "--resume", "run"]) in (0, 1)


def test_a_fingerprint_tells_what_changed() -> None:
    image, points = torch.rand(3, 8, 9), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    roi = torch.ones(8, 9, dtype=torch.bool)
    base = Sample("a", image, points, roi)
    known = data_fingerprint([base])
    assert known["images"] == 1
    part = roi.clone()
    part[0, 0] = False
    changed = {
        "names": Sample("b", image, points, roi),
        "pixels": Sample("a", image.flip(2), points, roi),
        "points": Sample("a", image, points + 1, roi),
        "regions": Sample("a", image, points, part),
    }
    for name, other in changed.items():
        now = data_fingerprint([other])
        assert [key for key in known if known[key] != now[key]] == [name]
    for name, other in {
        "points": Sample("a", image, None, roi),
        "regions": Sample("a", image, points),
    }.items():
        now = data_fingerprint([other])
        assert [key for key in known if known[key] != now[key]] == [name]
    assert data_fingerprint([base, changed["names"]]) != data_fingerprint([changed["names"], base])
    assert data_fingerprint([base, base])["images"] == 2


def test_a_fingerprint_is_of_the_samples_not_of_their_files(tmp_path: Path) -> None:
    """The same pixels and heads in other files are the same data."""
    images(tmp_path / "one", "test")
    (tmp_path / "two").mkdir()
    for sample in data.open(tmp_path / "one"):
        rows = [f"{x!r},{y!r}" for x, y in sample.points.tolist()]
        (tmp_path / "two" / f"{sample.name}.csv").write_text("\n".join(rows))
        levels = (sample.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(tmp_path / "two" / f"{sample.name}.bmp")
    one, two = (data_fingerprint(data.open(tmp_path / name)) for name in ("one", "two"))
    assert one == two
