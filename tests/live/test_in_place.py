"""Probes that are not in the code that the process runs: noticed, whichever way they were set."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.errors import CodeMismatch
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.process import Process
from qtrace.record.all_events.all_recorder import AllRecorder
from qtrace.record.ebpf.bpf_program import load_watch
from qtrace.record.ebpf.ebpf_recorder import EbpfProbes
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.record.plans import make_plans
from qtrace.record.start import set_probes
from tests.live.support.attached import attached
from tests.live.support.older_kernel import take_perf_events

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]


@pytest.mark.parametrize(
    ("way", "compiled"),
    [("link", False), ("perf event", False), pytest.param("link", True, marks=pytest.mark.bcc)],
)
def test_probes_that_are_in_another_process_are_refused(
    way: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes them, counts nothing as lost, and nothing ever comes."""
    if way == "perf event":
        take_perf_events(monkeypatch)
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        Guest(find_qemu(), firmware="idle") as other,
    ):
        process = Process(guest.pid)
        module = process.binary
        plans = make_plans(module, (), everything=True, optional=True)
        assert plans.everything is not None
        qemu = LiveQemu(process, plans.scan)
        uprobes = Uprobes(other.pid, process.exe, module.elf.offset_of)
        probes = EbpfProbes(uprobes, load_watch(compiled=compiled), other.pid)
        every = AllRecorder.load(
            plans.everything, module, other.pid, process.exe, compiled=compiled
        )
        try:
            with pytest.raises(CodeMismatch, match="not in the code that the process runs"):
                set_probes(qemu, plans, probes, every)
        finally:
            probes.close()
            every.close()


def test_probes_of_all_that_somebody_took_out_leave_no_verdict(tmp_path: Path) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        module = Process(guest.pid).binary
        plan = make_plans(module, (), everything=True, optional=True).everything
        assert plan is not None
        with attached(guest.pid, "--all", "-o", tmp_path / "trace.csv") as attach:
            with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as memory:
                for site in plan.sites:
                    memory.seek(site.vaddr + module.bias)
                    memory.write(module.elf.read(site.vaddr, 1))
            status, report, err = attach.end()
        assert guest.alive
    assert (status, report["lost_events"]) == (4, len(plan.sites))
    assert "somebody has taken out the probe '--all run'" in err
