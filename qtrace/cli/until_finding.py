"""Whether one row of a recording proves a finding (--until-finding)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from qtrace.analysis import exit_status, judge
from qtrace.errors import ExitStatus
from qtrace.trace.schema import Event
from qtrace.trace.writer import CsvWriter


def is_finding(header: Event, row: Event) -> bool:
    """As ``judge`` sees it; ``header`` is the recording's attach row."""
    if row.event == "blocked" and not row.name:
        return bool(row.detail["looks"] > 1 and row.detail["kind"] == "stuck")
    if row.event != "run" or row.role == "main":
        return False
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        path = Path(folder, "row.csv")
        with CsvWriter(path) as writer:
            writer.write([header, row, Event(row.time_ns, "detach")])
        return exit_status(judge([path])) == ExitStatus.FINDING
