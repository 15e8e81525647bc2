"""The command's further modes: universal, black-box, transfer, query, printing, photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from pycc import models, runs
from pycc.attack.physical import photo
from pycc.data import load_image, save_image
from pycc.report import page

FEW = ["--steps", "3", "--patch-size", "8", "--pgd-steps", "0", "--no-checks", "--no-pictures"]


@pytest.fixture
def other(weights: Path, tmp_path: Path) -> Path:
    """Weights that differ from ``weights``."""
    counter = models.load(weights)
    with torch.no_grad():
        for parameter in counter.parameters():
            parameter.mul_(1.05)
    models.save(counter, tmp_path / "other.npz", metadata={})
    return tmp_path / "other.npz"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Three training and two test images in the layout of ShanghaiTech; one is in both parts."""
    root = tmp_path / "part"
    for split, numbers in (("train", (1, 2, 9)), ("test", (3, 9))):
        images, truths = root / f"{split}_data/images", root / f"{split}_data/ground-truth"
        images.mkdir(parents=True)
        truths.mkdir()
        for number in numbers:
            noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3)).astype(np.uint8)
            Image.fromarray(noise).save(images / f"IMG_{number}.jpg")
            location = np.empty((1, 1), object)
            location[0, 0] = np.array([[5.0, 6.0], [20.0, 30.0]])
            info = np.empty((1, 1), object)
            info[0, 0] = np.array(
                [[(location[0, 0], 2.0)]], dtype=[("location", "O"), ("number", "O")]
            )
            savemat(truths / f"GT_IMG_{number}.mat", {"image_info": info})
    return root


def test_universal(call, refused, part, folder, weights, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--attack", "universal", "--data", part, "--weights", weights, *FEW]
    done = call(*flags, "--out", out)
    assert done.code == 0
    assert done.err == "warning: training image IMG_9 is test image IMG_9: left out\n"
    assert "universal  8" in done.out
    patches = [load_image(file) for file in sorted((out / "patches").iterdir())]
    assert len(patches) == 2
    assert torch.equal(*patches)
    assert "worst" in refused(*flags, "--location", "worst")
    # A folder without parts would be trained and tested on the same images.
    same = ["--attack", "universal", "--data", folder, "--weights", weights, *FEW]
    assert "none that is no test image" in refused(*same)


def test_query(call, folder, weights, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("--attack", "query", "--data", folder, "--weights", weights, "--out", out, *FEW)
    assert done.code == 0
    assert "query" in done.out
    assert json.loads((out / "manifest.json").read_text())["settings"]["attacks"][0]["share"] == 0.8


def test_black_box(call, refused, folder, weights, other, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--data", folder, "--weights", weights, *FEW]
    done = call(*flags, "--surrogates", other, "--combine", "worst", "--out", out)
    assert done.code == 0
    _, head, *lines = done.out.splitlines()
    assert head.split()[:4] == ["patch", "patch", "size", "surrogates"]
    attacked = [line.split()[:3] for line in lines if line.startswith("apam")]
    assert [line[2] for line in attacked][1] == "other"
    assert "victim itself, got it as 'lively'" in refused(*flags, "--surrogates", other, weights)
    assert "names must differ" in refused(*flags, "--surrogates", other, other)
    assert "nowhere.npz" in refused(*flags, "--surrogates", tmp_path / "nowhere.npz")


def test_transfer(call, refused, folder, weights, other, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--data", folder, *FEW]
    done = call(*flags, "--transfer", weights, other, "--out", out)
    assert done.code == 0
    attacked = {tuple(r.split()[2:4]) for r in done.out.splitlines() if r.startswith("apam")}
    assert attacked == {(v, s) for v in ("lively", "other") for s in ("lively", "other")}
    assert call("--resume", out).code == 0
    assert "two counters or more" in refused(*flags, "--transfer", weights)
    assert "neither --weights nor" in refused(*flags, "--transfer", weights, "--weights", other)


def test_print(call, refused, tmp_path: Path) -> None:
    save_image(tmp_path / "patch.png", torch.rand(3, 20, 20))
    done = call("--print", tmp_path / "patch.png", "--width-mm", 50, "--out", tmp_path / "kit")
    assert (done.code, done.err) == (0, "")
    assert "50.0 x 50.0 mm at 300 dpi" in done.out
    assert {file.name for file in (tmp_path / "kit").iterdir()} == {
        "patch.png", "page.pdf", "kit.json",
    }  # fmt: skip
    coarse = call(
        "--print", tmp_path / "patch.png", "--width-mm", 10, "--dpi", 40, "--out", tmp_path / "c"
    )
    assert coarse.code == 0
    assert coarse.err.startswith("warning: ")
    assert "inch" in coarse.err
    assert "--width-mm" in refused("--print", tmp_path / "patch.png")
    assert "--print beside it" in refused("--width-mm", 50)
    assert "expected no --steps" in refused(
        "--print", tmp_path / "patch.png", "--width-mm", 50, "--steps", 3
    )
    flags = ["--width-mm", 50, "--out", tmp_path / "new"]
    assert "nowhere.png" in refused("--print", tmp_path / "nowhere.png", *flags)
    assert "width_mm" in refused("--print", tmp_path / "patch.png", "--width-mm", -1)


def test_photo(call, refused, weights, tmp_path: Path) -> None:
    for name in ("clean", "attacked"):
        (tmp_path / name).mkdir()
        for number in range(2):
            generator = torch.Generator().manual_seed(number + 10 * (name == "attacked"))
            picture = torch.rand(3, 48, 64, generator=generator)
            save_image(tmp_path / name / f"mall_{number}.png", picture)
    flags = ["--photo", tmp_path / "clean", tmp_path / "attacked"]
    done = call(*flags, "--weights", weights, "--out", tmp_path / "run")
    assert done.code == 0
    assert "mall_0" in done.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == 2
    assert summary["error_rate"] > 0
    assert "--weights" in refused(*flags)
    (tmp_path / "attacked" / "mall_1.png").unlink()
    message = refused(*flags, "--weights", weights, "--out", tmp_path / "none")
    assert "mall_1" in message
    assert "attacked" in message


def test_photographs_are_a_run_as_any(
    call, refused, weights, other, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, resumed from another folder, taken as a model; with a page and a card."""
    for name in ("clean", "attacked"):
        (tmp_path / name).mkdir()
        for number in range(3):
            generator = torch.Generator().manual_seed(number + 10 * (name == "attacked"))
            picture = torch.rand(3, 48, 64, generator=generator)
            save_image(tmp_path / name / f"{number}.png", picture)
    first, one = tmp_path / "first", tmp_path / "one"
    flags = ["--photo", "../clean", tmp_path / "attacked", "--weights", weights]
    assert call(*flags, "--out", one).code == 0
    with monkeypatch.context() as stopping:
        counted = photo.Member.map

        def stops(self: photo.Member, image: torch.Tensor, name: str) -> torch.Tensor:
            if name.endswith("attacked/1.png"):
                raise KeyboardInterrupt
            return counted(self, image, name)

        stopping.setattr(photo.Member, "map", stops)
        done = call(*flags, "--out", first)
    assert done.code == 130
    assert done.err.endswith(f"stopped; continue with: pycc attack --resume {first}\n")
    assert len((first / "results.jsonl").read_text().splitlines()) == 1
    assert "--weights was" in refused("--resume", first, "--weights", other)
    assert "expected no --steps beside it" in refused("--resume", first, "--steps", 3)
    monkeypatch.chdir(tmp_path)
    assert call("--resume", first).code == 0
    for name in ("results.jsonl", "summary.json"):
        assert (first / name).read_bytes() == (one / name).read_bytes()
    assert call("--like", one, "--weights", other, "--out", tmp_path / "two").code == 0
    manifests = [runs.read_manifest(tmp_path / run) for run in ("one", "two")]
    kept = [manifest["settings"]["flags"] for manifest in manifests]
    assert kept[1] == {**kept[0], "weights": str(other)}
    folders = [Path(folder).resolve() for folder in kept[0]["photo"]]
    assert folders == [tmp_path / name for name in ("clean", "attacked")]
    assert kept[0].keys() >= {"device", "bit_depth", "model", "option"}
    assert page.Card.read(one / page.CARD).kind == "photo"
    assert "Photographs of a printed patch" in (one / page.REPORT).read_text()
    # A run of another kind is none of photographs, and the other way round.
    clean = ["--attack", "clean", "--max-images", 1, "--weights", weights]
    assert call(*clean, "--out", "c").code == 0
    assert "expected a run of this command" in refused(*flags, "--resume", "c")
    (tmp_path / "attacked" / "2.png").write_bytes((tmp_path / "attacked" / "1.png").read_bytes())
    assert "the pixels of the images changed" in refused("--resume", one)
