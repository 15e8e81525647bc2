"""The page of an attack."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.reports import replaced, write_attack

from pycc.report import page
from pycc.report.page.blocks import Drawing, Gallery, Table, Text
from pycc.report.page.card import Card
from pycc.report.page.contents import Options

pytestmark = pytest.mark.command

PASS = {"name": "gradient", "verdict": "pass", "figure": "1e-6"}
FAIL = {"name": "loss on a <plateau>", "verdict": "fail", "figure": "12 % at most 5 %"}
NONE = {"name": "seeds", "verdict": "not applicable", "figure": "one seed"}


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without matplotlib: images need none, and charts take most of the time."""
    monkeypatch.setattr("pycc.report.pictures.find_spec", lambda name: None)


def content(folder: Path, **options: object) -> page.Content:
    run = page.StoredRun.read(folder)
    return page.contents["attack"](run, Options(**options))  # type: ignore[arg-type]


def rows(table: object) -> list[list[str]]:
    assert isinstance(table, Table)
    return [[cell.text for cell in row] for row in table.rows]


def test_verdict_tables_and_card(tmp_path: Path) -> None:
    folder = write_attack(tmp_path / "run", checks=[PASS, NONE])
    made = content(folder, alarm=15, pictures=False)
    assert made.title == "Attack on mcnn-synthetic: apam on <crowd>, test"
    # Counts: 11 and 21 clean; 16 pixels add 160 and 320 people.
    assert made.verdict.sentence == (
        "Patches of 16 px (apam) raise the mean absolute error of mcnn-synthetic from 1.0 to 241 "
        "people on 2 images; noise of the same size and place: 2.0."
    )
    assert made.verdict.checks == "All checks that apply passed (1)."
    main, checks = made.main
    assert [row[:3] for row in rows(main)][-1] == ["apam", "16 px", "241.0"]
    assert [row[0] for row in rows(checks)] == ["pass", "not applicable"]
    by_patch, by_image = made.shift
    assert rows(by_patch)[-1] == [
        "apam, 16 px", "+240.0", "+1,500.0 %", "+320.0", "two", "+160.0", "one",
    ]  # fmt: skip
    assert rows(by_image)[0] == ["two", "20", "21.0", "341.0", "+320.0", "+1,523.8 %"]
    _, alarms = made.alarm
    assert rows(alarms)[0] == ["clean", "0 of 1", "0 of 1"]
    assert rows(alarms)[-1] == ["apam, 16 px", "0 of 1", "1 of 1"]
    card = made.card
    assert [(e.patch_size, e.mae) for e in card.attacked] == [(8.0, 121.0), (16.0, 241.0)]
    assert (card.clean and card.clean.mae, card.noise[0].mae, card.unreliable) == (1.0, 2.0, False)
    assert (card.threat.methods, card.threat.patch_sizes) == (("apam",), (8.0, 16.0))
    assert (card.data.name, card.data.fingerprint) == ("<crowd>", "ab" * 32)


def test_gallery_and_places(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = content(write_attack(tmp_path / "run"))
    (gallery,) = made.gallery
    assert isinstance(gallery, Gallery)
    assert [pair.name for pair in gallery.pairs] == ["two", "one"], "the worst first"
    worst = gallery.pairs[0]
    assert worst.facts == (
        "21.0 people counted clean, 341 with the patch (+320.0, +1,524 %)",
        "apam patch, 16 px; 20 heads annotated",
    )
    assert worst.patch is not None
    assert (worst.patch.left, worst.patch.top) == (100 * 8 / 64, 100 * 4 / 48)
    assert (worst.patch.width, worst.patch.height) == (100 * 16 / 64, 100 * 16 / 48)
    assert (worst.width, worst.height) == (64, 48)
    for layer in (worst.clean_map, worst.attacked_map):
        assert layer is not None
        assert (layer.left, layer.top, layer.width, layer.height) == (0, 0, 100, 100)
    errors, losses = made.curves
    assert isinstance(errors, Drawing)
    assert isinstance(losses, Drawing)
    drawn, places = made.places
    assert isinstance(drawn, Drawing)
    assert "people per image" in drawn.svg, "density maps show where people appear"
    assert rows(places)[0] == ["two", "16 px", "8, 4", "top left", "+320.0", "+1,523.8 %"]


def test_failed_checks_come_first_and_make_the_card_unreliable(tmp_path: Path) -> None:
    folder = write_attack(tmp_path / "run", ["<script>alert(1)</script>"], checks=[PASS, FAIL])
    file = page.write_run(folder, Options(pictures=False))
    html = file.read_text()
    assert html.index("1 of 2 checks that apply failed:") < html.index("Main figures</h2>")
    assert "loss on a &lt;plateau&gt;</strong>: 12 % at most 5 %" in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    card = Card.read(folder / page.CARD)
    assert card.unreliable
    assert [check.name for check in card.failed_checks] == [FAIL["name"]]
    assert json.loads((folder / page.CARD).read_text())["unreliable"] is True


def test_the_page_needs_nothing_from_outside_and_is_reproducible(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write_attack(tmp_path / "run")
    html = page.write_run(folder).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", html)
    order = re.findall(r'<section id="(\w+)"', html)
    assert order == [
        "verdict", "main", "curves", "gallery", "places", "shift", "alarm", "settings",
    ]  # fmt: skip
    assert html.rindex("ab" * 32) > html.index('<section id="settings"'), "hashes last"
    assert page.write_run(folder).read_text() == html


def test_without_pictures_tables_are_left(tmp_path: Path) -> None:
    folder = write_attack(tmp_path / "run")
    made = content(folder, pictures=False)
    for blocks in (made.curves, made.gallery):
        (text,) = blocks
        assert isinstance(text, Text)
        assert "pycc report RUN" in text.paragraphs[0]
    assert [type(block) for block in made.places] == [Table]
    html = page.write_run(folder, Options(pictures=False)).read_text()
    assert "<img" not in html
    assert "<svg" not in html


def test_without_matplotlib_the_page_says_what_to_install(tmp_path: Path, no_charts) -> None:
    made = content(write_attack(tmp_path / "run"))
    (text,) = made.curves
    assert isinstance(text, Text)
    assert "pip install 'pycc[plot]'" in text.paragraphs[0]
    assert [type(block) for block in made.places] == [Table]
    assert made.main
    assert made.shift


def test_a_run_without_images_says_so(tmp_path: Path, no_charts) -> None:
    never = content(write_attack(tmp_path / "never", images=False, maps=False), pictures=True)
    (text,) = never.gallery
    assert isinstance(text, Text)
    assert "--no-save-images" in text.paragraphs[0]
    gone = write_attack(tmp_path / "gone", ["one", "two", "three"])
    (gone / "images/0001-image.clean.png").unlink()
    (gone / "maps/0000-image.clean.npz").unlink()
    (gone / "maps/0002-image.clean.npz").write_bytes(b"no archive")
    (gone / "patches/0000-image.apam-16.png").unlink()
    (gallery,) = content(gone).gallery
    assert isinstance(gallery, Gallery)
    assert [pair.name for pair in gallery.pairs] == ["three", "one"]
    assert gallery.pairs[1].patch is None
    assert not gallery.mapped
    assert gallery.notes == (
        "Not in the run folder any more: 1 image.",
        "No density maps: the run kept none; it does if pictures are drawn.",
    )
    for file in (gone / "images").iterdir():
        file.unlink()
    (text,) = content(gone).gallery
    assert isinstance(text, Text)
    assert "holds no images any more" in text.paragraphs[0]


def test_an_image_that_is_none_is_named(tmp_path: Path, no_charts) -> None:
    folder = write_attack(tmp_path / "run")
    (folder / "images/0001-image.clean.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0001-image.clean.png: expected an image"):
        content(folder)


def test_images_without_annotation(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = content(write_attack(tmp_path / "run", annotated=False))
    assert made.verdict.sentence == (
        "With patches of 16 px (apam) the mean count goes from 16.0 to 256 people on 2 images; "
        "noise of the same size and place: 17.0."
    )
    assert "errors against their heads are unknown" in made.main[0].notes[1]  # type: ignore[union-attr]
    assert isinstance(made.curves[0], Drawing)
    assert "Mean count by patch size" in made.curves[0].caption
    assert "not annotated" in made.alarm[0].paragraphs[0]  # type: ignore[union-attr]


def test_without_a_patch_there_is_little_to_show(tmp_path: Path) -> None:
    made = content(write_attack(tmp_path / "run", sizes=()))
    assert made.verdict.sentence == (
        "mcnn-synthetic counted 2 images without any patch, with a mean absolute error of 1.0 "
        "people."
    )
    assert (made.curves, made.gallery, made.places, made.shift) == ((), (), (), ())


def test_many_images_stay_within_bounds(tmp_path: Path, monkeypatch, no_charts) -> None:
    monkeypatch.setattr("pycc.report.page.attack_gallery.MOST", 3)
    monkeypatch.setattr("pycc.report.page.attack.MOST_ROWS", 2)
    names = [f"image {number}" for number in range(5)]
    made = content(write_attack(tmp_path / "run", names))
    (gallery,) = made.gallery
    assert isinstance(gallery, Gallery)
    assert [pair.name for pair in gallery.pairs] == ["image 4", "image 3", "image 2"]
    assert gallery.notes == ("The 3 worst of 5 images.",)
    _, by_image = made.shift
    assert [row[0] for row in rows(by_image)] == ["image 4", "image 3"]
    assert isinstance(by_image, Table)
    assert by_image.notes == ("The 2 largest shifts of 5; all are in results.jsonl.",)


def test_a_large_image_is_made_smaller(tmp_path: Path, monkeypatch, no_charts) -> None:
    monkeypatch.setattr("pycc.report.page.attack_gallery.MOST_BYTES", 2 * 9_000)
    (gallery,) = content(write_attack(tmp_path / "run", shape=(240, 320))).gallery
    assert isinstance(gallery, Gallery)
    for pair in gallery.pairs:
        assert len(pair.clean) < 12_100, "data is a third longer than the file"
        assert 64 <= pair.width < 320
        assert abs(pair.width / pair.height - 4 / 3) < 0.02


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"settings": {"save_images": True, "save_maps": True}}, "expected a field 'attacks'"),
        ({"settings": []}, "settings: expected a JSON object"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: dict[str, object], says: str) -> None:
    folder = write_attack(tmp_path / "run")
    replaced(folder / "manifest.json", **damage)
    with pytest.raises(ValueError, match=rf"^{folder / 'manifest.json'}, .*{says}"):
        content(folder)


def test_damaged_results_are_named(tmp_path: Path) -> None:
    folder = write_attack(tmp_path / "run")
    results = folder / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join([*lines[:2], json.dumps({"index": 1}), *lines[3:]]) + "\n")
    with pytest.raises(ValueError, match=r"results.jsonl, line 3: expected a field 'image', got"):
        content(folder)
    lost = [line for line in lines if json.loads(line)["condition"] != "clean"]
    results.write_text("\n".join(lost) + "\n")
    with pytest.raises(ValueError, match="expected the clean count of image 'one', got none"):
        content(folder)
    results.write_text("\n".join(lines) + "\n")
    replaced(folder / "summary.json", rows=None)
    with pytest.raises(ValueError, match=r"summary.json: expected a field 'rows', got none"):
        content(folder)


def test_several_victims_are_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = content(write_attack(tmp_path / "run", maps=False, victims=("one", "other")))
    assert rows(made.main[0])[-1][:5] == ["apam", "16 px", "other", "one", "113.0"]
    assert rows(made.shift[0])[-1][0] == "apam, 16 px, made on one, against other"
    assert [(row.victim, row.surrogates) for row in made.card.attacked] == [
        ("one", "one"), ("one", "one"), ("other", "one"), ("other", "one"),
    ]  # fmt: skip
    errors, losses = made.curves
    assert isinstance(errors, Drawing)
    assert "apam, made on one, against other" in errors.svg
    assert isinstance(losses, Drawing)
    (gallery,) = made.gallery
    assert isinstance(gallery, Gallery)
    assert [pair.name for pair in gallery.pairs] == ["two", "one"]
