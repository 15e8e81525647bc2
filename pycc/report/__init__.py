"""Tables and images of a run's results, made from the run folder alone."""

from pycc.report.pictures import draw, missing_library
from pycc.report.published import APAM_TABLE_1
from pycc.report.summary import gates_table, summarise, table

__all__ = ["APAM_TABLE_1", "draw", "gates_table", "missing_library", "summarise", "table"]
