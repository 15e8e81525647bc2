"""Tables and images of a run's results, made from the run folder alone."""

from pycc.report.overlay import draw_overlay, peaks
from pycc.report.pictures import draw, missing_library
from pycc.report.published import APAM_TABLE_1
from pycc.report.summary import AttackSummary, Check, SummaryRow, checks_table, summarise, table

__all__ = [
    "APAM_TABLE_1",
    "AttackSummary",
    "Check",
    "SummaryRow",
    "checks_table",
    "draw",
    "draw_overlay",
    "missing_library",
    "peaks",
    "summarise",
    "table",
]
