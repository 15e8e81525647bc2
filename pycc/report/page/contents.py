"""The registry of what each kind of run has to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pycc.registry import Registry
from pycc.report.page.blocks import Content
from pycc.report.page.stored import StoredRun
from pycc.report.pictures import missing_library


@dataclass(frozen=True)
class Options:
    """The options of a page: the level of its alarm, and whether it has pictures."""

    alarm: float | None = None
    """People from which on an image sets off an alarm; None: a level that suits the images."""
    pictures: bool = True
    """Whether curves are drawn and images shown."""

    @property
    def without_curves(self) -> str | None:
        """Why no curve is drawn; None if curves are drawn."""
        if not self.pictures:
            return "Curves were left out (--no-pictures); pycc report RUN draws them."
        missing = missing_library()
        return None if missing is None else f"No curves: {missing}."


contents: Registry[Callable[[StoredRun, Options], Content]] = Registry("kind of run")
"""By the kind in the manifest: the function that makes the content of a page.

A kind from elsewhere is added by one decorated function, ``@contents.register("kind")``.
"""
