"""Bad input through the command: one line on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pycc import models
from pycc.data import save_image

FAST = [
    "--steps", "2", "--patch-size", "6", "0.2", "--pgd-steps", "0", "--no-checks", "--no-pictures",
]  # fmt: skip


def test_missing_data_folder(refused, weights: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in refused("--data", missing, "--weights", weights)


def test_data_that_is_a_file(refused, weights: Path) -> None:
    assert str(weights) in refused("--data", weights, "--weights", weights)


def test_image_without_annotation(refused, folder: Path, weights: Path) -> None:
    (folder / "scene_1.csv").unlink()
    message = refused("--data", folder, "--weights", weights)
    assert "scene_1.png: image without annotation" in message


def test_annotation_without_image(refused, folder: Path, weights: Path) -> None:
    (folder / "scene_1.png").unlink()
    message = refused("--data", folder, "--weights", weights)
    assert "scene_1.csv: annotation without image" in message


def shanghaitech(root: Path, annotation: dict[str, Any], *, cut: bool = False) -> Path:
    """A part of two images in the published layout; the second one's files may be broken."""
    from PIL import Image

    images, truths = root / "test_data" / "images", root / "test_data" / "ground-truth"
    images.mkdir(parents=True)
    truths.mkdir()
    whole = np.empty((1, 1), object)
    whole[0, 0] = np.array([[5.0, 6.0], [20.0, 30.0]])
    points = np.zeros((1, 1), dtype=[("location", object), ("number", object)])
    points[0, 0] = (whole[0, 0], 2.0)
    info = np.empty((1, 1), object)
    info[0, 0] = points
    for number, content in ((1, {"image_info": info}), (2, annotation or {"image_info": info})):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(images / f"IMG_{number}.jpg")
        savemat(truths / f"GT_IMG_{number}.mat", content)
    if cut:
        file = images / "IMG_2.jpg"
        file.write_bytes(file.read_bytes()[:1500])
    return root


def test_truncated_jpeg(refused, call, weights: Path, tmp_path: Path) -> None:
    root = shanghaitech(tmp_path / "part", {}, cut=True)
    arguments = ["--data", root, "--weights", weights, *FAST]
    assert "IMG_2.jpg: cannot read the image" in refused(*arguments)
    assert call(*arguments, "--max-images", 1).code == 0, "the first image is whole"


def test_mat_without_points(refused, weights: Path, tmp_path: Path) -> None:
    root = shanghaitech(tmp_path / "part", {"something": np.zeros(3)})
    assert "GT_IMG_2.mat" in refused("--data", root, "--weights", weights, *FAST)


@pytest.mark.parametrize(("text", "says"), [("3,nan", "finite"), ("3,4\nabc,5", "abc")])
def test_csv_with_nan_or_text(text: str, says: str, refused, folder, weights) -> None:
    (folder / "scene_2.csv").write_text(text)
    message = refused("--data", folder, "--weights", weights, *FAST)
    assert "scene_2.csv" in message
    assert says in message


def test_weights_of_another_architecture(refused, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    state = dict(models.create("mcnn").net.state_dict())
    state["frontend.0.weight"] = state.pop("branch1.0.conv.weight")
    torch.save(state, file)
    message = refused("--data", folder, "--model", "mcnn", "--weights", file)
    assert "other.pth" in message
    assert "missing" in message
    assert "branch1.0.conv.weight" in message
    assert "unexpected" in message
    assert "frontend.0.weight" in message


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(refused, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb(tmp_path / "exploded")}, file)
    assert "bomb.pth" in refused("--data", folder, "--model", "mcnn", "--weights", file)
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert "bomb.pth" in refused("--data", folder, "--model", "mcnn", "--weights", file)
    assert not (tmp_path / "exploded").exists()


def test_h5_weights_without_h5py(refused, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "pip install 'pycc[h5]'" in refused("--data", folder, "--weights", tmp_path / "w.h5")


def test_missing_weights(refused, folder: Path, tmp_path: Path) -> None:
    message = refused("--data", folder, "--weights", tmp_path / "none.pth")
    assert "none.pth" in message
    assert "--weights FILE" in refused("--data", folder, "--model", "mcnn")


def test_unknown_model(refused, folder: Path, weights: Path) -> None:
    message = refused("--data", folder, "--weights", weights, "--model", "crowdnet")
    assert "crowdnet" in message
    assert all(name in message for name in models.names())


def test_patch_larger_than_the_image(refused, folder: Path, weights: Path) -> None:
    message = refused("--data", folder, "--weights", weights, "--patch-size", 20, 50)
    assert "scene_0: APAM: patch_size 50 must give" in message
    assert "48x64" in message


def test_a_place_outside_the_image(refused, folder: Path, weights: Path) -> None:
    flags = ["--location", "given", "--top-left", 40, 0, "--patch-size", 10]
    assert "inside the image" in refused("--data", folder, "--weights", weights, *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "-3"], "steps must be at least 0, got -3"),
        (["--steps", "many"], "--steps"),
        (["--patch-size", "-5"], "patch_size must be pixels above 0 or a share of (0,1], got -5"),
        (["--patch-size", "0"], "patch_size must be"),
        (["--patch-size", "6", "6"], "must differ"),
        (["--patch-size", "big"], "--patch-size"),
        (["--step-size", "2"], "step_size must be in (0,1]"),
        (["--shape", "star"], "square"),
        (["--objective", "target", "--target-count", "-1"], "target_count"),
        (["--eot-samples", "0"], "eot_samples must be at least 1, got 0"),
        (["--restarts", "0"], "restarts must be at least 1, got 0"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--pgd-steps", "-1"], "--pgd-steps must be at least 0"),
        (["--pgd-epsilon", "2"], "epsilon must be in (0,1]"),
        (["--optimiser", "newton"], "momentum"),
        (["--location", "moon"], "moving"),
        (["--attack", "query", "--location", "worst"], "a fixed place"),
        (["--init", "nowhere.png"], "nowhere.png"),
        (["--attack", "unknown"], "apam"),
        (["--attack", "clean", "--steps", "3"], "--steps"),
        (["--device", "abacus"], "--device"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--max-images", "0"], "--max-images must be at least 1"),
        (["--threads", "0"], "--threads must be within [1,"),
        (["--option", "resize"], "NAME=VALUE"),
        (["--option", "colour=1"], "colour"),
        (["--on-error", "ignore"], "skip"),
        (["--bogus"], "--bogus"),
        (["--pictures", "--no-save-images"], "--pictures"),
    ],
)
def test_bad_flags(flags: list[str], says: str, refused, folder: Path, weights: Path) -> None:
    assert says in refused("--data", folder, "--weights", weights, *flags)


@pytest.mark.parametrize("kind", ["below a file", "in /proc", "is a file", "holds files"])
def test_an_output_folder_that_cannot_be_had(kind, refused, folder, weights, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    out = {
        "below a file": tmp_path / "file" / "run",
        "in /proc": Path("/proc/run"),
        "is a file": tmp_path / "file",
        "holds files": folder,
    }[kind]
    message = refused("--data", folder, "--weights", weights, "--out", out, *FAST)
    assert str(out) in message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "3"], "--steps was 2, got 3"),
        (["--patch-size", "6"], "--patch-size was [6, 0.2], got [6]"),
        (["--seed", "5"], "--seed was 0, got 5"),
        (["--attack", "clean"], "--attack was 'apam', got 'clean'"),
        (["--data", "synthetic"], "got 'synthetic'"),
        (["--out", "elsewhere"], "neither --out nor --like"),
    ],
)
def test_resume_with_other_settings(flags, says, refused, finished: Path) -> None:
    assert says in refused("--resume", finished, *flags)


def test_resume_with_other_data_or_weights(call, refused, folder, weights, tmp_path) -> None:
    out, file = tmp_path / "run", tmp_path / "mine.npz"
    file.write_bytes(weights.read_bytes())
    call("--data", folder, "--weights", file, "--out", out, "--max-images", 1, *FAST)
    text = (folder / "scene_0.csv").read_text()
    (folder / "scene_0.csv").write_text(text + "\n5,5")
    assert "the head annotations changed (fingerprints.data.points)" in refused("--resume", out)
    (folder / "scene_0.csv").write_text(text)
    counter = models.load(file)
    counter.net[3].bias.data += 0.001
    models.save(counter, file, metadata={})
    assert "fingerprints.weights.victim changed" in refused("--resume", out)


def test_resume_of_no_run(refused, folder: Path, tmp_path: Path) -> None:
    assert "expected a run folder" in refused("--resume", folder)
    assert "expected a run folder" in refused("--resume", tmp_path / "nowhere")


@pytest.mark.long
def test_resume_keeps_the_number_of_threads(call, refused, folder, weights, tmp_path) -> None:
    """The number of threads changes the order of sums, and with it the bits of a count."""
    out, before = tmp_path / "run", torch.get_num_threads()
    flags = ["--data", folder, "--weights", weights, "--max-images", 1, *FAST]
    call(*flags, "--out", out, "--threads", 2)
    torch.set_num_threads(1)
    try:
        done = call("--resume", out)
        assert (done.code, done.err) == (0, "")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "--threads was 2, got 1" in refused("--resume", out, "--threads", 1)


def test_other_versions_are_a_warning(call, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["environment"]["torch"] = "1.0"
    (out / "manifest.json").write_text(json.dumps(manifest))
    done = call("--resume", out)
    assert done.code == 0
    assert done.err.startswith("warning: ")
    assert "torch was '1.0'" in done.err


@pytest.mark.parametrize("damage", ["setting", "environment", "result"])
def test_resume_of_a_damaged_run(damage, call, refused, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    manifest = json.loads((out / "manifest.json").read_text())
    if damage == "setting":
        del manifest["settings"]["flags"]["momentum"]
    if damage == "result":
        (out / "results.jsonl").write_text("{}\n")
    if damage == "environment":
        manifest["environment"] = None
    (out / "manifest.json").write_text(json.dumps(manifest))
    if damage == "environment":  # nothing depends on it
        assert call("--resume", out).code == 0
    else:
        says = {"setting": "flags.momentum was None, is 0.9", "result": "line 1, got no index"}[
            damage
        ]
        assert says in refused("--resume", out)


def test_an_image_smaller_than_a_cell(refused, folder, weights) -> None:
    save_image(folder / "tiny.png", torch.zeros(3, 3, 3))
    (folder / "tiny.csv").write_text("1,1\n")
    message = refused("--data", folder, "--weights", weights, "--attack", "clean")
    assert "tiny: image must have at least one cell of 4x4 pixels, got 3x3" in message


@pytest.mark.parametrize(("alpha", "says"), [(0, "must be opaque"), (128, "partially transparent")])
def test_a_first_patch_with_alpha(alpha, says, refused, call, folder, weights, tmp_path) -> None:
    """Transparent pixels are refused where the patch is; a stored disc may start a disc."""
    from PIL import Image

    from pycc.attack.patch import disc

    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[disc(16).numpy() == 0, 3] = alpha
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    flags = ["--data", folder, "--weights", weights, "--init", tmp_path / "disc.png"]
    message = refused(*flags, *FAST[:2], "--patch-size", 16)
    assert "disc.png" in message
    assert says in message
    if alpha == 0:
        few = [*FAST[:2], *FAST[5:], "--patch-size", 16, "--max-images", 1, "--shape", "disc"]
        assert call(*flags, *few, "--out", tmp_path / "run").code == 0
