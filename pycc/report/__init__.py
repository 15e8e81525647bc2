"""What a run's results say: summary, table and pictures, from the run folder alone."""

from pycc.report.pictures import draw, missing_library
from pycc.report.summary import summarise, table

__all__ = ["draw", "missing_library", "summarise", "table"]
