"""CVAT: its shapes and labels, and XML that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data

BOMB = (
    '<!DOCTYPE annotations [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcde", "bcdef",
                                                                            strict=True))
    + ']><annotations><image name="a.png"><tag>&f;</tag></image></annotations>'
)  # fmt: skip
OUTSIDE = (
    '<!DOCTYPE annotations [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    '<annotations><image name="a.png">&x;</image></annotations>'
)


def write(root: Path, shapes: str) -> Path:
    add_images(root, "a.png", "b.png")
    images = f'<image id="0" name="a.png"/><image id="1" name="b.png">{shapes}</image>'
    meta = "<meta><task><name>a &amp; b</name></task></meta>"
    (root / "all.xml").write_text(f"<?xml version='1.0'?><annotations>{meta}{images}</annotations>")
    return root


def test_shapes(tmp_path: Path) -> None:
    shapes = (
        '<tag label="indoor"/><points label="p" points="1.5,2;3,4"><attribute name="x">1'
        '</attribute></points><box label="p" xtl="2" ytl="3" xbr="7" ybr="7" rotation="9"/>'
        '<ellipse label="p" cx="5" cy="6" rx="1" ry="2"/>'
    )
    samples = pycc.data.open(write(tmp_path, shapes))
    assert [sample.count for sample in samples] == [0, 4]
    assert samples[1].points.tolist() == [[1.5, 2], [3, 4], [4.5, 5], [5, 6]]


def test_labels(tmp_path: Path) -> None:
    shapes = '<points label="person" points="1,2"/><points label="dog" points="3,4"/>'
    write(tmp_path, shapes)
    with pytest.warns(UserWarning, match=r"counts the label 'person'; left out 'dog'"):
        assert [sample.count for sample in pycc.data.open(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ('<polygon points="1,2;3,4;5,6"/>', "polygon: expected points, box or ellipse"),
        ('<points points="1,2,3"/>', "points: expected x,y;x,y;…, got '1,2,3'"),
        ('<points points="1,two"/>', "points: could not convert"),
        ('<points points="1,inf"/>', "points: coordinates must be finite"),
        ('<box xtl="1" ytl="2" xbr="3"/>', "box: lacks 'ybr'"),
    ],
)
def test_an_image_with_a_shape_that_is_no_head(tmp_path: Path, shape: str, problem: str) -> None:
    write(tmp_path, f'<points points="1,2"/>{shape}')
    with pytest.raises(ValueError, match=r"all\.xml: image 'b\.png': ") as raised:
        pycc.data.open(tmp_path)
    assert problem in str(raised.value)
    with pytest.warns(UserWarning, match="skipped"):
        assert pycc.data.open(tmp_path, on_error="skip").names == ["a"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, r"line 1: has a document type declaration \(DOCTYPE\)"),
        (OUTSIDE, r"line 1: has a document type declaration \(DOCTYPE\)"),
        ("<annotations><image name='a.png'></annotations>", "not an XML file: mismatched tag"),
        ("<x><annotations/></x>", "line 1: expected the element annotations, got x"),
        ("<annotations><image id='0'/></annotations>", "line 1: image without a name"),
        ("<annotations><track id='0'/></annotations>", "line 1: has tracks of a video"),
        ("<annotations></annotations>", "lists no image"),
        ("<?xml version='1.0' encoding='rot13'?><annotations/>", "not an XML file: "),
    ],
)
def test_other_xml_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    add_images(tmp_path, "a.png")
    (tmp_path / "all.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"all\.xml: {problem}") as raised:
        pycc.data.open(tmp_path)
    assert "\n" not in str(raised.value)
