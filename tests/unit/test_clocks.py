"""No duration is told by a clock that somebody may set while it lasts."""

from __future__ import annotations

import re

from tests.unit.test_knowledge import ROOT, sources

WALL = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.now\(|CLOCK_REALTIME")
# They tell when something was, or compare with what bears such a time: a file, QMP's events.
ONLY_MOMENTS = {
    "qtrace/autopsy/archive.py",
    "qtrace/export/perfetto.py",
    "qtrace/lab/snapshot_jobs.py",
    "qtrace/lab/workdir.py",
    "qtrace/record/header.py",
}


def test_a_step_of_the_clock_changes_no_duration() -> None:
    found = {
        str(path.relative_to(ROOT)) for path in sources() if WALL.search(path.read_text("utf-8"))
    }
    assert found == ONLY_MOMENTS
