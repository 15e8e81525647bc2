"""The wording of pages: patch sizes, numbers of things and names of conditions."""

from __future__ import annotations

from collections.abc import Sequence


def size_text(size: float | None) -> str:
    """A patch size: pixels, or per cent of the image's width for a share.

    >>> size_text(81), size_text(0.02), size_text(None)
    ('81 px', '2 % of the width', '')
    """
    if size is None:
        return ""
    return f"{size:,.0f} px" if size > 1 else f"{100 * size:g} % of the width"


def number_of(count: int, thing: str) -> str:
    """A number of things, in the plural if they are not one.

    >>> number_of(1, "image"), number_of(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence names them.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def people(value: float) -> str:
    """A number of people, with a decimal where it matters.

    >>> people(8.62), people(1234.56)
    ('8.6', '1,235')
    """
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
