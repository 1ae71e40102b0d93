"""What probes have shown of a QEMU is made once, and anew with each thing that happens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from qtrace.monitor.host_probes import HostProbes
from qtrace.monitor.state import VmState
from qtrace.monitor.vm_probes import VmProbes

COUNTS: dict[str, Any] = {
    "commands": {"stop": 1}, "seconds": {"stop": 0.5}, "buckets": [1, 0, 0, 0, 0, 0],
    "waiting": {}, "jobs": {}, "changes": {},
}  # fmt: skip
STATE = VmState("vm1", "qemu-system-x86_64", "7.2", "ab", looks=3)


def probes(*, timed: bool = False, sums: Any = None) -> VmProbes:
    host = SimpleNamespace(sums=sums, generation=1)
    return VmProbes(cast(HostProbes, host), "1:2", timed=timed)


def test_as_long_as_nothing_happens_it_is_the_same_one() -> None:
    one = probes()
    assert one.add_to(STATE) is one.add_to(STATE)


def test_each_look_and_each_report_shows() -> None:
    one = probes()
    one.add_to(STATE)
    one.steps(COUNTS)
    assert one.add_to(STATE).steps.commands == {"stop": 1}
    one.steps(COUNTS | {"commands": {"stop": 2}})
    assert one.add_to(STATE).steps.commands == {"stop": 2}
    later = VmState("vm1", "qemu-system-x86_64", "7.2", "ab", looks=4)
    assert one.add_to(later).looks == 4
    assert one.add_to(later).steps.commands == {"stop": 2}


def test_times_that_the_kernel_adds_up_are_asked_for_each_time() -> None:
    asked = []
    sums = SimpleNamespace(times=lambda pid: asked.append(pid) or {})
    one = probes(timed=True, sums=sums)
    one.add_to(STATE)
    one.add_to(STATE)
    assert len(asked) == 2
