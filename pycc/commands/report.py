"""``pycc report``: a page about one run, several side by side, or many as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pycc.attack.physical import page as photo_page  # noqa: F401  (registers its page)
from pycc.backdoor.evaluation import page as backdoor_page  # noqa: F401  (likewise)
from pycc.certify import page as certify_page  # noqa: F401  (likewise)
from pycc.commands.base import DONE, Command, Context, folder_by_time
from pycc.report import page
from pycc.settings import flag


@dataclass(frozen=True)
class ReportSettings:
    """The runs to report, and the output."""

    run: tuple[str, ...] = flag(
        (), "run folders; several are shown side by side", positional=True, metavar="RUN"
    )
    out: str | None = flag(
        None, "the page (default: report.html in the run folder, beside a new card.json; of "
        "several runs runs/report-TIME.html; of a leaderboard leaderboard.html in FOLDER)",
        metavar="FILE",
    )  # fmt: skip
    alarm: float | None = flag(
        None, "people from which on an image sets off an over-crowding alarm (default: a level "
        "that a quarter of the images sets off)", metavar="N",
    )  # fmt: skip
    leaderboard: str | None = flag(
        None, "a page with sortable tables of all runs below a folder, by their card.json",
        metavar="FOLDER",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.alarm is not None and not (self.alarm > 0 and math.isfinite(self.alarm)):
            raise ValueError(f"--alarm: expected a number of people above 0, got {self.alarm:g}")
        if self.leaderboard is not None and (self.run or self.alarm is not None):
            raise ValueError("--leaderboard: expected neither RUN nor --alarm beside it")
        if self.leaderboard is None and not self.run:
            raise ValueError("RUN: expected a run folder or --leaderboard FOLDER, got none")
        if self.out is not None and Path(self.out).is_dir():
            raise ValueError(f"--out {self.out}: expected a file, got a folder")


class Report(Command[ReportSettings]):
    """``pycc report``."""

    name = "report"
    summary = "Write a page about runs: what they found, for someone who was not there."
    settings = ReportSettings
    epilog = "The page is one file that needs no network. A finished run has written its own."

    def run(self, settings: ReportSettings, context: Context) -> int:
        """Write the page and print its path."""
        options = page.Options(alarm=settings.alarm)
        if settings.leaderboard is not None:
            out = settings.out or Path(settings.leaderboard) / page.LEADERBOARD
            file = page.write_leaderboard(settings.leaderboard, out)
        elif settings.out is None and len(settings.run) == 1:
            file = page.write_run(settings.run[0], options)
        else:
            out = settings.out or f"{folder_by_time('report')}.html"
            file = page.write_report(settings.run, out, options)
        print(f"report: {file}", flush=True)
        return DONE


command = Report()
