"""QEMUs that a host's monitor takes up: by what the kernel tells, or by looking round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from qtrace.monitor.host_probes import HostProbes
from qtrace.monitor.host_watch import HostWatch

PROBES = cast(HostProbes, SimpleNamespace(sums=None, generation=1))
# None that there is: pids are smaller.
KEY = (1 << 30, 5)


def test_one_that_was_found_before_its_start_was_told_has_its_start_then() -> None:
    watch = HostWatch(1.0)
    watch.probes = PROBES
    found = watch._take_up(KEY, "qemu-system-x86_64", "vm1")
    assert found is not None
    assert found.probes is not None
    assert found.probes.exec_ns == 0
    assert watch._take_up(KEY, "qemu-system-x86_64", "vm1", 77) is None
    assert found.probes.exec_ns == 77
    # And not the other way round: looking round tells no start.
    assert watch._take_up(KEY, "qemu-system-x86_64", "vm1") is None
    assert found.probes.exec_ns == 77


def test_guests_of_other_names_are_left_alone() -> None:
    watch = HostWatch(1.0, names=("db-*",))
    assert watch._take_up(KEY, "qemu-system-x86_64", "web-1", 77) is None
    assert watch._take_up(KEY, "qemu-system-x86_64", "db-1", 77) is not None


def test_one_that_does_not_tell_its_name_is_watched() -> None:
    watch = HostWatch(1.0, names=("db-*",))
    assert watch._take_up(KEY, "qemu-system-x86_64", None) is not None
