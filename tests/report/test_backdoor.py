"""The tables of a backdoor experiment, in the paper's shape, and its pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pycc.backdoor.evaluation.measures import record
from pycc.backdoor.evaluation.summary import curves, distributions, summarise
from pycc.metrics.backdoor import BackdoorSummary
from pycc.metrics.detection import roc
from pycc.report import backdoor
from pycc.report import backdoor_pictures as pictures
from pycc.report.backdoor_pictures import Panel
from pycc.report.backdoor_published import (
    PUBLISHED_1,
    PUBLISHED_2,
    PUBLISHED_3,
    disagreements,
)

RAISES = {"add": True, "minus": False}


def results(*, seed: int = 0) -> list[dict[str, Any]]:
    """Two strategies and a clean model, undefended and fine-tuned; a detector; 40 images."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(10, 200, 40)
    records = []

    def put(
        strategy: str | None, model: Any, defense: str | None, images: Any, mean: float
    ) -> None:
        for index, truth in enumerate(truths.tolist()):
            records.append(record(
                strategy=strategy, model=model, defense=defense, images=images, index=index,
                name=f"IMG_{index + 1}", truth=truth, count=truth * rng.normal(mean, 0.08),
                raises=None if strategy is None else RAISES[strategy],
                target=2 * truth if strategy and images == "triggered" else None,
            ))  # fmt: skip

    for images in ("clean", "triggered"):
        put(None, "clean", None, images, 1.0)
    put(None, "clean", "fine-tuning", "clean", 1.0)
    for strategy, mean in (("add", 1.6), ("minus", 0.4)):
        put(strategy, "backdoored", None, "clean", 1.0)
        put(strategy, "backdoored", None, "triggered", mean)
        put(strategy, "backdoored", "fine-tuning", "clean", 1.0)
        put(strategy, "backdoored", "fine-tuning", "triggered", 0.75 + 0.25 * mean)
    for images, mean in (("clean", 0.0), ("triggered", 2.0)):
        records += [
            record(
                strategy="add", model="backdoored", defense="blend consistency", images=images,
                index=index, name=f"IMG_{index + 1}", raises=True, score=rng.normal(mean, 1.0),
                threshold=1.5,
            )
            for index in range(40)
        ]  # fmt: skip
    return records


@pytest.fixture(scope="module")
def summary() -> BackdoorSummary:
    return summarise(results())


def line(text: str, *starts: str) -> str:
    """The only line that begins with these words."""
    (match,) = [line for line in text.splitlines() if line.split()[: len(starts)] == list(starts)]
    return match


def test_table_1(summary: BackdoorSummary) -> None:
    text = backdoor.table_1({"csrnet": summary})
    rows = {row.strategy: row for row in summary.rows if row.defense is None}
    attacked = rows["add"].triggered.success
    assert f"{attacked.value:.3f} [" in line(text, "csrnet", "add")
    assert line(text, "csrnet", "clean").split()[-5:] == ["/"] * 5
    published = [line.strip() for line in text.splitlines() if line.startswith(" ")]
    label = "published, ShanghaiTech B, blend 0.1"
    assert all(line.startswith(label) for line in published), "whatever was measured here"
    assert [line.removeprefix(label).split() for line in published] == [
        ["0.684", "/"], ["0.405", "0.212"], ["0.411", "0.959"],
    ]  # fmt: skip
    assert "csrnet: 40 images" in text
    assert "disagree" in text
    other = backdoor.table_1({"mcnn": summary})
    assert "published" not in other, "nothing is published of another model"


def test_table_2_has_the_bands(summary: BackdoorSummary) -> None:
    text = backdoor.table_2({"clip_ebc": summary})
    assert text.splitlines()[0].split() == [
        "model", "strategy", "rho_Acc", "±0.1~", "±0.3~", "±0.5~", "±1~", "rho_Asr",
        "chance:", "clean", "model", "chance:", "no", "trigger",
    ]  # fmt: skip
    lowered = line(text, "clip_ebc", "minus")
    assert " /" in lowered, "a count cannot fall by more than all"
    assert "/" not in line(text, "clip_ebc", "add")
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(" ")] == [
        "0.000", "0.000", "/", "/",
    ]  # fmt: skip
    assert "minus, fine-tuning" in text


def test_table_3_puts_before_and_after_side_by_side(summary: BackdoorSummary) -> None:
    text = backdoor.table_3({"csrnet": summary})
    success = {
        row.defense: row.triggered.success.value
        for row in summary.rows
        if row.strategy == "add" and row.triggered and row.triggered.success
    }
    row = line(text, "csrnet", "add")
    before, after = f"{success[None]:.3f} [", f"{success['fine-tuning']:.3f} ["
    assert success[None] != success["fine-tuning"]
    assert row.index(before) < row.index(after)
    assert line(text, "csrnet", "clean").split()[-1] == "/"
    assert "0.646" in text
    other = backdoor.table_3({"csrnet": summary}, defense="anp")
    assert "0.646" not in other, "published is what fine-tuning does"
    assert line(other, "csrnet", "add").count(" -") == 3


def test_one_table_for_all_defenses(summary: BackdoorSummary) -> None:
    text = backdoor.defenses_table(summary)
    for strategy in ("add", "minus"):
        rows = {row.defense: row for row in summary.rows if row.strategy == strategy}
        assert rows[None].excess.value > 0.7
        for defense, shown in ((None, "none"), ("fine-tuning", "fine-tuning")):
            row = line(text, strategy, shown)
            over = (rows[defense].excess, rows[defense].left)
            excess, left = (f"{difference.value:+.3f} [" for difference in over)
            assert row.index(excess) < row.rindex(left)
    assert line(text, "clean", "none")


def test_missing_results_are_dashes() -> None:
    summary = summarise(r for r in results() if r["images"] == "clean")
    text = backdoor.tables({"m": summary})
    assert " - " in line(backdoor.table_1({"m": summary}), "m", "add")
    assert "nan" not in text.lower()
    assert "none" in text.lower()


def test_images_that_no_share_covers_are_noted() -> None:
    extra = record(
        strategy=None, model="clean", defense=None, images="clean", index=99, name="x", truth=0,
        count=-2.5,
    )  # fmt: skip
    text = backdoor.table_1({"m": summarise([*results(), extra])})
    assert "m: 40 or 41 images; 1 without heads" in text
    assert "up to 1 counts below 0" in text


def test_certified_intervals_and_detectors() -> None:
    certified = [
        {
            **result,
            "defense": "median",
            "low": result["truth"] * 0.95,
            "high": result["truth"] * 1.05,
        }
        for result in results()
        if result["strategy"] == "minus" and result["defense"] is None
    ]
    summary = summarise([*results(), *certified])
    text = backdoor.tables({"csrnet": summary})
    assert "certified: minus, median, clean images: mean width" in text
    assert "certified: minus, median, triggered images: mean width" in text
    assert "within a tenth of the truth: 1.000 [" in text
    (detection,) = summary.detections
    row = line(text, "add", "blend", "consistency")
    assert f"{detection.auc:.3f}" in row
    alarms, caught = (
        f"{share.value:.3f} [" for share in (detection.false_alarms, detection.detected)
    )
    assert row.index(alarms) < row.rindex(caught)
    assert text.count("rho_Acc: images") == 1, "printed once"
    assert [part for part in text.split("\n\n") if "\n" not in part] == [
        "Table 1: backdoor attacks", "Table 2: bands of attack success",
        "Table 3: before and after fine-tuning", "All defenses: csrnet", "Detectors: csrnet",
    ]  # fmt: skip


def test_published_bands_do_not_add_up() -> None:
    """A check of the numbers typed in, by what is known of them."""

    def total(model: str, strategy: str) -> float:
        return sum(share or 0 for share in PUBLISHED_2[model][strategy, False][1:])

    assert total("csrnet", "multiply") == pytest.approx(0.886)
    assert total("csrnet", "add") == pytest.approx(0.212)
    assert total("csrnet", "divide") == pytest.approx(0.937)
    assert total("clip_ebc", "divide") == pytest.approx(0.598)
    for model, rows in PUBLISHED_3.items():
        for strategy, (accuracy, _, success, _) in rows.items():
            if (model, strategy) not in (("csrnet", "clean"), ("csrnet", "multiply")):
                assert (accuracy, success) == PUBLISHED_1[model][strategy]


def test_contradictions_of_the_paper_are_noted_for_the_models_shown(
    summary: BackdoorSummary,
) -> None:
    assert disagreements("csrnet") == [
        "rho_Acc of clean .684 (1), .646 (3)",
        "rho_Asr of multiply .867 (1), .544 (3), .886 (2, sum of bands)",
        "rho_Asr of divide, fine-tuned .273 (3), .373 (2, sum of bands)",
    ]
    assert disagreements("clip_ebc") == [
        "rho_Acc of add, fine-tuned .778 (2), .788 (3)",
        "rho_Acc of minus, fine-tuned .816 (2), .823 (3)",
        "rho_Asr of multiply .911 (1), .911 (3), .991 (2, sum of bands)",
        "rho_Asr of multiply, fine-tuned .266 (3), .025 (2, sum of bands)",
        "rho_Asr of divide, fine-tuned .273 (3), .266 (2, sum of bands)",
    ]
    for shown in (["csrnet"], ["clip_ebc"], ["csrnet", "clip_ebc"], ["mcnn"]):
        text = backdoor.tables(dict.fromkeys(shown, summary))
        words = " ".join(text.split())
        for model in ("csrnet", "clip_ebc"):
            sentence = f"published of {model}, the paper's tables disagree: "
            sentence += "; ".join(disagreements(model)) + "."
            assert words.count(sentence) == (model in shown), "once, and of no other model"
    assert max(map(len, backdoor.disagreement_note("clip_ebc"))) < 100


def photo(shift: float = 0.0) -> np.ndarray:
    rows, columns = np.mgrid[:48, :64] / 64
    return np.stack([rows, columns, np.full_like(rows, shift)], 2).astype(np.float32)


def heat(shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)


PICTURES: dict[str, Callable[[Path], None]] = {
    "kde": lambda file: pictures.draw_kde(
        distributions(results(), [None, "fine-tuning"]), file, title="ratios"
    ),
    "roc": lambda file: pictures.draw_roc(curves(results()), file),
    "gradcam": lambda file: pictures.draw_gradcam(
        {
            "front end": [Panel("clean", photo(), heat()), Panel("triggered", photo(0.5), heat())],
            "back end": [Panel("clean", photo(), heat()), Panel("triggered", photo(0.5), heat())],
        },
        file,
    ),
    "maps": lambda file: pictures.draw_maps(
        [Panel("before", photo(), heat()), Panel("after", photo(), 2 * heat())], file
    ),
}


@pytest.mark.command
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_drawn_and_the_same_again(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "pictures" / f"{name}.png"
    PICTURES[name](file)
    first = file.read_bytes()
    with Image.open(file) as picture:
        assert min(picture.size) > 400
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    PICTURES[name](file)
    assert file.read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("name", PICTURES)
def test_without_matplotlib(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'pycc\[plot\]'"):
        PICTURES[name](tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_no_figure_behind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    before = "matplotlib.pyplot" in sys.modules
    for name, draw in PICTURES.items():
        draw(tmp_path / f"{name}.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_bad_pictures_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "a.png"
    one = Panel("x", photo(), heat())
    with pytest.raises(ValueError, match="draw_kde: expected something to draw, got none"):
        pictures.draw_kde({}, file)
    with pytest.raises(ValueError, match=r"rows must be of one length above 0, got \[1, 2\]"):
        pictures.draw_gradcam({"a": [one], "b": [one, one]}, file)
    with pytest.raises(ValueError, match=r"cells must be within \[0,1\], got 0…2 for 'x'"):
        pictures.draw_gradcam({"a": [Panel("x", photo(), 2 * heat())]}, file)
    with pytest.raises(ValueError, match="draw_maps: expected something to draw, got none"):
        pictures.draw_maps([], file)
    assert not list(tmp_path.iterdir())


def test_densities_stand_in_a_row_of_images_and_a_column_of_defenses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three defenses are four columns of two rows; what was not measured leaves its place empty."""
    pytest.importorskip("matplotlib")
    shown: list[list[str]] = []

    def kept(figure: Any, _: Path) -> None:
        axes = figure.axes
        columns = axes[0].get_gridspec().ncols
        titles = [axis.get_title() for axis in axes]
        shown.extend(titles[n : n + columns] for n in range(0, len(titles), columns))

    monkeypatch.setattr(pictures, "save_figure", kept)
    defenses = ("backdoored", "fine-tuning", "nad", "anp")
    panels = {
        (images, defense): {"add": [0.9, 1.0, 1.4]}
        for images in ("clean images", "triggered images")
        for defense in defenses
        if (images, defense) != ("triggered images", "nad")
    }
    pictures.draw_kde(panels, tmp_path / "a.png")
    assert shown == [
        [f"{name}: clean images" for name in defenses],
        [f"{name}: triggered images" if name != "nad" else "" for name in defenses],
    ]


def test_far_ratios_are_counted_and_do_not_stretch_the_axis(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    values = np.concatenate([np.linspace(0.8, 1.2, 300), [400.0]])
    pictures.draw_kde({("a", "b"): {"add": values}}, tmp_path / "a.png")
    pictures.draw_roc({"one": roc([0.0, 1.0], [1.0, 2.0])}, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000
