"""Thousands of recordings: a row for each, and which build or host differs (docs/fleet.md).

``survey(["recordings/"], "summary.parquet")`` reads what is new and keeps the rest; ``groups(rows,
By.parse("build"))`` compares. Serial, on processes, or on Dask: each file is a task of its own, and
its row is the same whoever made it.
"""

from qtrace.analysis.fleet.groups import By, Group, groups, worst_first
from qtrace.analysis.fleet.rows import Row
from qtrace.analysis.fleet.survey import Fleet, survey
from qtrace.analysis.fleet.table import read_table
from qtrace.analysis.fleet.workers import Processes, Serial, Workers

__all__ = [
    "By",
    "Fleet",
    "Group",
    "Processes",
    "Row",
    "Serial",
    "Workers",
    "groups",
    "read_table",
    "survey",
    "worst_first",
]
