"""Pages made from contents: the templates, and the files that are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pycc.report.page.blocks import Block, Content
from pycc.runs import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS = (
    ("main", "Main figures"),
    ("curves", "Curves"),
    ("gallery", "Images"),
    ("places", "Where in the image a patch hurts most"),
    ("shift", "How far counts move"),
    ("alarm", "Consequences for an alarm"),
    ("settings", "Settings, hashes, versions"),
)
"""Fields of a content and their titles, in the order of the page."""


@dataclass(frozen=True)
class Section:
    """One section of a page: the blocks of each run."""

    name: str
    title: str
    columns: tuple[tuple[Block, ...], ...]


def sections_of(contents: Sequence[Content]) -> list[Section]:
    """The sections in which any run has something to show."""
    sections = [
        Section(name, title, tuple(getattr(content, name) for content in contents))
        for name, title in SECTIONS
    ]
    return [section for section in sections if any(section.columns)]


@cache
def environment() -> Environment:
    """The templates of the package, where all values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("pycc.report.page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def write_page(file: Path, template: str, **values: object) -> None:
    """Write a page, whole or not at all; OSError if it cannot be written."""
    html = environment().get_template(template).render(values)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A name from JSON may hold half a surrogate pair, which no file can hold.
    write_atomic(file, html.encode("utf-8", "replace"))
