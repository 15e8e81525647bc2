"""Whether a command draws pictures: one rule for all of them."""

from __future__ import annotations

from pycc import report
from pycc.commands.progress import note


def drawn(requested: bool | None, problem: str | None = None) -> bool:
    """Whether pictures are drawn: as ``requested``, by default if they can be.

    They cannot without the library, or because of a ``problem`` with the other flags. ValueError
    if they are requested nevertheless; if neither was requested, the first process prints a note.
    """
    problem = report.missing_library() or problem
    if requested and problem is not None:
        raise ValueError(f"--pictures: {problem}")
    if requested is None and problem is not None:
        note(f"no pictures: {problem}")
    return problem is None if requested is None else requested
