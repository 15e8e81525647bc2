"""``pycc count`` as users run it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pycc import data, models
from pycc.commands import main
from pycc.commands.memory import bytes_per_pixel

RNG = np.random.default_rng(3)


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """``argv`` with the built-in weights, given by name unless ``argv`` names others."""
    words = [str(word) for word in argv]
    if not {"--weights", "--model"} & {*words}:
        words += ["--weights", "mcnn-synthetic"]
    code = main("count", words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def picture(path: Path, shape: tuple[int, int] = (40, 52)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*shape, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """A data set of two splits: two images with 3 and 1 heads, and one with none."""
    heads = {"test/a": [[1, 2], [9, 9], [30, 30]], "test/b": [[2, 2]], "train/c": []}
    for name, points in heads.items():
        file = picture(tmp_path / "crowd" / f"{name}.png")
        file.with_suffix(".json").write_text(json.dumps(points))
    return tmp_path / "crowd"


def rows_of(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out)))


def test_the_rows_are_the_counts_of_the_counter(capsys, crowd: Path) -> None:
    code, out, err = run(capsys, crowd, "--csv")
    assert (code, err) == (0, "")
    rows = rows_of(out)
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    assert [row["truth"] for row in rows] == ["3", "1", "0"]
    counter = models.load("mcnn-synthetic")
    for row, split in zip(rows, ["test", "test", "train"], strict=True):
        sample = next(s for s in data.open(crowd, split=split) if s.name == row["image"])
        with torch.no_grad():
            wanted = float(counter(sample.image[None]).double().sum())
        assert float(row["count"]) == pytest.approx(wanted, rel=1e-6)
        assert float(row["people_per_megapixel"]) == pytest.approx(1e6 * wanted / (40 * 52))


def test_photographs_need_weights_of_their_own(capsys, crowd: Path) -> None:
    """The built-in counter counts drawn people: its counts of others come with a warning."""
    assert main("count", [str(crowd)]) == 0
    assert capsys.readouterr().err == (
        "warning: --weights: none given; the built-in mcnn-synthetic counts drawn people, not "
        f"those of {crowd}\n"
    )
    assert main("count", ["synthetic", "--max-images", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_totals(capsys, crowd: Path) -> None:
    _, out, _ = run(capsys, crowd, "--split", "test", "--json")
    content = json.loads(out)
    errors = np.array([row["count"] for row in content["rows"]]) - [3, 1]
    totals = content["totals"]
    assert totals["images"] == totals["annotated"] == 2
    assert totals["truth"] == 4
    assert totals["mae"] == pytest.approx(np.abs(errors).mean())
    assert totals["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    _, out, _ = run(capsys, crowd, "--split", "test")
    assert f"MAE {totals['mae']:,.1f}, RMSE {totals['rmse']:,.1f}" in out


def test_images_without_annotation(capsys, tmp_path: Path, crowd: Path) -> None:
    alone = picture(tmp_path / "photos" / "x.png")
    picture(tmp_path / "photos" / "y.png")
    _, out, err = run(capsys, tmp_path / "photos", alone, crowd / "test", "--csv")
    rows = rows_of(out)
    assert "counted each time that it is named: x.png; totals contain it as often" in err
    assert err.count("\n") == 1
    assert [row["truth"] for row in rows] == ["", "", "", "3", "1"]
    assert rows[0]["count"] == rows[2]["count"]
    _, out, _ = run(capsys, crowd, "--split", "test", "--unannotated", "--csv")
    assert [row["truth"] for row in rows_of(out)] == ["", ""]
    _, out, _ = run(capsys, "synthetic", "--max-images", "1", "--unannotated", "--csv")
    assert [row["truth"] for row in rows_of(out)] == [""]
    _, out, err = run(capsys, tmp_path / "photos")
    assert err == ""
    assert "MAE" not in out


def test_a_polygon(capsys, tmp_path: Path, crowd: Path) -> None:
    left = tmp_path / "left.json"
    left.write_text("[[0, 0], [20, 0], [20, 40], [0, 40]]")
    _, out, _ = run(capsys, crowd, "--split", "test", "--roi", left, "--csv")
    rows = rows_of(out)
    assert [row["truth"] for row in rows] == ["2", "1"]
    counter = models.load("mcnn-synthetic")
    with torch.no_grad():
        density = counter(data.open(crowd)[0].image[None])[0, 0]
    people = float(rows[0]["count"])
    assert people == pytest.approx(float(density[:, :5].sum()), rel=1e-5)
    assert float(rows[0]["people_per_megapixel"]) == pytest.approx(1e6 * people / 800)


def test_overlays(capsys, tmp_path: Path, crowd: Path) -> None:
    folder = tmp_path / "pictures"
    assert run(capsys, crowd, "--overlay", folder)[0] == 0
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["crowd-test-a.png", "crowd-test-b.png",
                                             "crowd-train-c.png"]  # fmt: skip
    with Image.open(files[0]) as shown:
        assert shown.size == (52, 40)


def test_overlays_of_equal_names_are_kept_apart(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["one/x.png", "two/x.png", "two/X-2.png", "photos/img.1.png", "photos/img.2.png"]
    for name in names:
        picture(tmp_path / name)
    monkeypatch.chdir(tmp_path / "photos")
    paths = [tmp_path / name for name in names[:3]]
    code, out, _ = run(capsys, *paths, ".", "--overlay", tmp_path / "overlays", "--csv")
    assert code == 0
    assert {row["path"] for row in rows_of(out)[-2:]} == {str(tmp_path / "photos")}
    files = sorted(file.name for file in (tmp_path / "overlays").iterdir())
    assert files == ["X-2-2.png", "photos-img.1.png", "photos-img.2.png", "x-2.png", "x.png"]


def test_overlays_never_lie_beside_the_images(capsys, tmp_path: Path) -> None:
    alone = picture(tmp_path / "photos" / "x.png")
    before = alone.read_bytes()
    code, _, err = run(capsys, alone, "--overlay", tmp_path / "photos")
    assert code == 2
    assert "expected a folder without the images that are counted" in err
    assert [*(tmp_path / "photos").iterdir()] == [alone]
    assert alone.read_bytes() == before


def test_broken_images(capsys, tmp_path: Path) -> None:
    intact, broken = picture(tmp_path / "x.png"), tmp_path / "y.png"
    broken.write_bytes(intact.read_bytes()[:200])
    assert run(capsys, intact, broken)[0] == 2
    code, out, err = run(capsys, intact, broken, "--on-error", "skip", "--csv")
    assert (code, [row["image"] for row in rows_of(out)]) == (0, ["x.png"])
    assert "skipped: " in err
    code, _, err = run(capsys, broken, "--on-error", "skip")
    assert code == 2
    assert "y.png: no image can be read" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: PATH"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["sythetic"], "sythetic does not exist; did you mean 'synthetic'?"),
        (["CROWD", "--csv", "--json"], "--csv: expected no --json beside it"),
        (["CROWD", "--max-memory", "0"], "--max-memory must be above 0 GB, got 0"),
        (["CROWD", "--max-memory", "1e-6"], "a: --max-memory 1e-06: reading the image alone takes"),
        (["CROWD", "--max-images", "0"], "--max-images must be at least 1, got 0"),
        (["CROWD", "--wieghts", "x"], "unknown flag --wieghts; did you mean '--weights'?"),
        (["CROWD", "--split", "tset"], "has splits test, train, got 'tset'"),
        (["CROWD", "--roi", "LINE"], "a polygon needs 3 points [x, y] or more, got 2"),
        (["CROWD", "--roi", "FAR"], "--roi: no pixel of 40x52 lies in the polygon"),
        (["CROWD", "--option", "depth=3"], "unknown option 'depth'"),
    ],
)
def test_bad_usage(capsys, crowd: Path, argv: list[str], message: str) -> None:
    line, far = crowd.parent / "line.json", crowd.parent / "far.json"
    line.write_text("[[0, 0], [5, 5]]")
    far.write_text("[[90, 90], [99, 90], [99, 99]]")
    places = {"CROWD": str(crowd), "LINE": str(line), "FAR": str(far)}
    code, out, err = run(capsys, *(places.get(word, word) for word in argv))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_memory_per_pixel_is_that_of_the_layers_held_at_once() -> None:
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
    small.stride, small.receptive_field = 1, 3
    # Eight channels of float32 before the ReLU and after it, twice for the workspace.
    assert bytes_per_pixel(small.eval()) == pytest.approx(2 * 2 * 8 * 4, rel=0.01)
    assert bytes_per_pixel(models.create("csrnet").eval()) > 10 * 2 * 8 * 4
