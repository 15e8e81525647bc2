"""Docstrings as reStructuredText: what is plain in Python and marked up there."""

from __future__ import annotations

import re

_LITERAL = re.compile(r"(``.*?``)")


def escape_bars(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Keep the bars of an absolute value, which would name a substitution."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = _LITERAL.split(line)
            parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
            lines[number] = "".join(parts)
