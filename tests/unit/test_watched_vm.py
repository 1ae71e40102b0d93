"""When looks at a QEMU have shown what they can."""

from __future__ import annotations

import os

import pytest

from qtrace.inspection.watch import Watched
from qtrace.monitor import watched_vm
from qtrace.monitor.watched_vm import PROVEN_AFTER_S, WatchedVm
from qtrace.qemu.aio.model import Look


def test_a_single_look_however_late_it_comes_proves_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(watched_vm.time, "monotonic", lambda: now[0])
    vm = WatchedVm(os.getpid(), "vm", "qemu-system-x86_64", 0.5)
    seen = Watched(Look(0, (), (), ()), (), (), None)
    now[0] += 2 * PROVEN_AFTER_S
    assert not vm.is_seen(PROVEN_AFTER_S)
    vm._take(seen, 0.1)
    assert not vm.is_seen(PROVEN_AFTER_S)
    now[0] += PROVEN_AFTER_S
    vm._take(seen, 0.1)
    assert vm.is_seen(PROVEN_AFTER_S)


def test_one_that_cannot_be_looked_at_is_not_waited_for() -> None:
    vm = WatchedVm(os.getpid(), "vm", "qemu-system-x86_64", 0.5)
    vm.refused = "not allowed to see what its threads do"
    assert vm.is_seen(PROVEN_AFTER_S)
