"""What kernels without links for uprobes do, on one that has them."""

from __future__ import annotations

import pytest

USERS = (
    "qtrace.record.ebpf.uprobes", "qtrace.record.ebpf.bpf_program", "qtrace.host.capabilities",
)  # fmt: skip


def take_perf_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each probe be a perf event."""
    for module in USERS:
        monkeypatch.setattr(f"{module}.links_work", lambda: False)
