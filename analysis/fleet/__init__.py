"""Thousands of recordings: a row for each, and which build or host differs (docs/fleet.md).

``survey(["recordings/"], "summary.parquet")`` reads what is new and keeps the rest; ``groups(rows,
By.parse("build"))`` compares. Serial, on processes, or on Dask: each file is a task of its own, and
its row is the same whoever made it.
"""

from qtrace.analysis.fleet.groups import By, Group, groups
from qtrace.analysis.fleet.rows import Row
from qtrace.analysis.fleet.survey import Fleet, survey
from qtrace.analysis.fleet.table import read_table
from qtrace.analysis.fleet.workers import Processes, Serial, Workers
from qtrace.analysis.fleet.worst import command_for, main_finding, worst_first

__all__ = [
    "By",
    "Fleet",
    "Group",
    "Processes",
    "Row",
    "Serial",
    "Workers",
    "command_for",
    "groups",
    "main_finding",
    "read_table",
    "survey",
    "worst_first",
]
