"""Charts as SVG in the page's colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pycc.report.page.charts import Line, Patch, line_chart, place_map

pytest.importorskip("matplotlib")
NAME = "a <b> & $x$ 漢"


def chart(**options: object) -> str:
    lines = [
        Line(NAME, (1, 2, 3), (10.0, 20.0, 400.0), (9.0, 18.0, 300.0), (11.0, 22.0, 500.0)),
        *(Line(f"line {number}", (1, 2), (1.0, 2.0)) for number in range(5)),
    ]
    return line_chart(
        lines, x_label="size", y_label="people", label="L", caption="C", level=("clean", 5.0),
        band=(1.5, 2.0), **options,  # type: ignore[arg-type]
    ).svg  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
def test_colours_are_the_pages_and_names_are_text(log: bool) -> None:
    svg = chart(log=log)
    assert not re.findall(r"(?:fill|stroke): *#\w+", svg)
    assert set(re.findall(r"var\((--[\w-]+)\)", svg)) == {
        "--ink", "--line", *(f"--series-{number}" for number in range(6)),
    }  # fmt: skip
    texts = [text.text for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")]
    assert NAME in texts, "no formula, no markup"
    assert ("200" if log else "400") in texts, "numbers, not powers of ten"
    assert svg == chart(log=log), "the same figure has the same bytes"


def test_names_of_parts_differ_between_charts() -> None:
    one = line_chart(
        [Line("a", (1, 2), (1.0, 2.0))], x_label="x", y_label="y", label="", caption="1"
    )
    two = line_chart(
        [Line("a", (1, 2), (1.0, 2.0))], x_label="x", y_label="y", label="", caption="2"
    )
    names = [set(re.findall(r' id="([^"]+)"', drawing.svg)) for drawing in (one, two)]
    assert not names[0] & names[1]


def test_patches_lie_where_they_are_over_the_heat() -> None:
    patches = [Patch(0.25, 0.5, 0.25, 0.25)]
    drawn = place_map(np.array([[1.0, -2.0]]), patches, unit="people", label="L", caption="C")
    plain = place_map(None, [], unit="people", label="L", caption="C")
    assert drawn.svg.count("<path") > plain.svg.count("<path")
    assert "people" in drawn.svg
    assert "people" not in plain.svg
