"""Pages in headless Chromium: what people see, and how they use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium, opened
from support.reports import write_attack, write_certify, write_training

from pycc.report import page

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)>&amp;\"'"
FAILED = [{"name": "plateau", "verdict": "fail", "figure": "12 %"}]
TABLES = page.Options(pictures=False)
KINDS = ("attack", "certify", "train", "both", "board")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    pytest.importorskip("matplotlib")
    root = tmp_path_factory.mktemp("pages")
    names = [HOSTILE, "two", "a " + "very" * 30 + "long name"]
    attack = write_attack(root / "runs/attack", names, checks=FAILED, shape=(96, 128))
    certify = write_certify(root / "runs/certify", violations=0)
    train = write_training(root / "runs/train")
    files = {"attack": page.write_run(attack)}
    # The charts of one page stand for all.
    files |= {"certify": page.write_run(certify, TABLES), "train": page.write_run(train, TABLES)}
    page.write_run(write_attack(root / "runs/second", gain=30.0), TABLES)
    files["both"] = page.write_report([attack, certify], root / "both.html", TABLES)
    files["board"] = page.write_leaderboard(root / "runs", root / "board.html")
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_pages_fit_and_are_accessible(browser: Any, pages: dict[str, Path], kind: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for width, theme in ((1440, "light"), (390, "dark")):
        with opened(browser, pages[kind], width=width, theme=theme) as shown:
            scrolled = shown.evaluate("document.documentElement.scrollWidth")
            assert scrolled == width, "no overflow"
            for hidden in shown.locator("details:not([open]) > summary").all():
                hidden.click()
            result = Axe().run(shown)
            assert result.violations_count == 0, result.generate_report()
            paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]


def test_on_paper_pages_are_light(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["attack"], theme="dark") as shown:
        shown.emulate_media(media="print")
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        assert not shown.locator("nav").is_visible()


def test_names_are_text(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["attack"]) as shown:
        assert shown.locator("figcaption strong", has_text="<img src=x").count() == 1
        assert shown.locator("td", has_text="<img src=x").count() > 1
        assert shown.locator("img[src=x]").count() == 0


def attacked_part(shown: Any) -> float:
    """The share of the first image, from the right, that is shown attacked."""
    clip = shown.evaluate("getComputedStyle(document.querySelector('.side.attacked')).clipPath")
    left = float(clip.removeprefix("inset(").removesuffix("%)").split()[-1])
    return 100 - left


def test_the_slider_follows_mouse_and_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["attack"]) as shown:
        stage, slider = shown.locator(".stage").first, shown.locator("input[type=range]").first
        assert attacked_part(shown) == 50
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        shown.mouse.down()
        shown.mouse.move(box["x"] + box["width"] / 4, box["y"] + 30)
        assert attacked_part(shown) == pytest.approx(75, abs=1)
        shown.mouse.up()
        shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
        assert attacked_part(shown) == pytest.approx(75, abs=1), "let go"
        slider.focus()
        shown.keyboard.press("Home")
        assert attacked_part(shown) == 100
        attacked = stage.screenshot()
        shown.keyboard.press("End")
        assert attacked_part(shown) == 0
        assert stage.screenshot() != attacked
        shown.keyboard.press("ArrowLeft")
        assert attacked_part(shown) == 1


def test_density_maps_can_be_hidden(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["attack"]) as shown:
        layer, box = shown.locator(".map").first, shown.locator("input.maps")
        assert layer.is_visible()
        box.focus()
        shown.keyboard.press("Space")
        assert not layer.is_visible()
        box.click()
        assert layer.is_visible()


def column(shown: Any, number: int) -> list[str]:
    cells = shown.locator(f"table.sortable >> nth=0 >> tbody td:nth-child({number})")
    texts: list[str] = cells.all_inner_texts()
    return texts


def test_tables_are_sorted_by_mouse_and_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["board"]) as shown:
        head = shown.locator("table.sortable >> nth=0 >> thead th")
        titles = head.all_inner_texts()
        place = titles.index("attacked, 16 px") + 1
        assert column(shown, 1) == ["attack", "second"]
        head.nth(place - 1).locator("button").click()
        assert column(shown, place) == ["721.0", "321.0"], "numbers from the largest"
        assert column(shown, 1) == ["second", "attack"]
        assert head.nth(place - 1).get_attribute("aria-sort") == "descending"
        head.nth(place - 1).locator("button").focus()
        shown.keyboard.press("Enter")
        assert column(shown, 1) == ["attack", "second"]
        assert head.nth(place - 1).get_attribute("aria-sort") == "ascending"
        head.nth(0).locator("button").focus()
        shown.keyboard.press("Space")
        shown.keyboard.press("Space")
        assert column(shown, 1) == ["second", "attack"], "texts backwards"
        assert head.nth(place - 1).get_attribute("aria-sort") == "none"


@pytest.mark.long
def test_two_hundred_images(browser: Any, tmp_path: Path) -> None:
    names = [f"image {number}" for number in range(220)]
    # Noise is the worst: nothing of it is left out when it is compressed.
    folder = write_attack(tmp_path / "run", names, shape=(480, 640), sizes=(163,), dense=True)
    file = page.write_run(folder, page.Options(pictures=True))
    assert file.stat().st_size < 15_000_000
    with opened(browser, file) as shown:
        assert shown.locator(".pair").count() == 200
        assert shown.get_by_text("The 200 worst of 220 images.").is_visible()
        lazy = shown.locator(".pair img[loading=lazy][decoding=async]").count()
        assert lazy == shown.locator(".pair img").count(), "images are decoded when they are seen"
