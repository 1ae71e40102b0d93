"""What kernels without links for uprobes do, on one that has them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

USERS = (
    "qtrace.record.ebpf.uprobes", "qtrace.record.ebpf.bpf_program", "qtrace.host.capabilities",
)  # fmt: skip


WITHOUT_LINKS = """
from qtrace.host import uprobe_links
uprobe_links.links_work = lambda: False
from qtrace.cli import main
main()
"""


def without_links(command: Sequence[str]) -> list[str]:
    """A command of qtrace's in which each probe is a perf event."""
    assert list(command[:3]) == [sys.executable, "-m", "qtrace"]
    return [sys.executable, "-c", WITHOUT_LINKS, *command[3:]]


def take_perf_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each probe of this process be a perf event."""
    for module in USERS:
        monkeypatch.setattr(f"{module}.links_work", lambda: False)
