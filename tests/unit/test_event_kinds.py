"""The table of event kinds: each in it once, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from qtrace.event_kinds import ARMED, DISARMED, EVENT_OF_SITE, KINDS, NAMES, EventKind

ROOT = Path(__file__).parents[2]
PACKAGES = ("qtrace/trace", "qtrace/sites", "qtrace/record", "qtrace/cli", "analysis")


def test_each_kind_has_one_line() -> None:
    assert sorted(NAMES) == sorted(get_args(EventKind))
    assert all(kind.bottom_half for kind in KINDS if kind.site)


def test_no_schedule_without_its_run_and_no_return_whose_run_was_not_seen() -> None:
    assert sorted(ARMED) == sorted(DISARMED) == sorted(EVENT_OF_SITE)
    assert ARMED.index("return") < ARMED.index("run") < ARMED.index("enqueue")
    assert ARMED.index("cancel") < ARMED.index("enqueue")
    assert DISARMED.index("enqueue") < DISARMED.index("return") < DISARMED.index("run")
    assert DISARMED.index("enqueue") < DISARMED.index("cancel")


def test_a_kind_of_all_is_named_in_the_table_and_at_its_site_alone() -> None:
    """Of one that means nothing special to anybody: as a new one would be."""
    named = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in Path(ROOT, package).rglob("*.py")
        if re.search(r'["\']co_schedule["\']', path.read_text())
    }
    # The others run its program to see what a hit costs, and have it come compiled.
    assert named == {
        "qtrace/sites/all_sites.py",
        "qtrace/record/all_events/overhead.py",
        "qtrace/record/ebpf/bpf_image.py",
    }
