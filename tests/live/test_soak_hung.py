"""Looks at QEMUs that hang, each kind again and again: every one of them finds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator
from tests.live.support.blocked_main import guest_with_monitors, save_left_behind
from tests.live.support.hung import hung_guest
from tests.live.support.inspecting import inspect
from tests.live.support.pausing import paused_behind_a_console
from tests.live.support.ptraced import until
from tests.live.support.writing import DEBUG_CONSOLE, functions_waiting_for_lock, writing_guest

pytestmark = [pytest.mark.qemu, pytest.mark.soak]

LOOKS = 20


@contextmanager
def drains(qemu: Path, accel: Accelerator, _folder: Path) -> Iterator[int]:
    with hung_guest(qemu, accel) as guest:
        yield guest.pid


@contextmanager
def opens(qemu: Path, accel: Accelerator, _folder: Path) -> Iterator[int]:
    with guest_with_monitors(qemu, accel) as guest, save_left_behind(guest):
        yield guest.pid


@contextmanager
def pauses(qemu: Path, accel: Accelerator, folder: Path) -> Iterator[int]:
    with paused_behind_a_console(qemu, accel, folder) as (guest, _tid):
        yield guest.pid


@contextmanager
def is_kept_off(qemu: Path, accel: Accelerator, folder: Path) -> Iterator[int]:
    """The holder of the BQL runs and moves all the time."""
    with writing_guest(qemu, accel, folder, DEBUG_CONSOLE) as process:
        until(lambda: "main_loop_wait" in functions_waiting_for_lock(process.pid), "the hang")
        yield process.pid


# What main does, and what the finding says of it.
HANGS = {
    drains: "waits in bdrv_drain",
    opens: " < qmp_chardev_open_file_source < ",
    pauses: "waits in pause_all_vcpus",
    is_kept_off: "for the BQL of ",
}


@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.__name__)
def test_20_looks_at_a_hung_guest_find_it_each_time(
    qemu_binary: Path,
    accel: Accelerator,
    hang: Callable[..., Iterator[int]],
    tmp_path: Path,
    soak_row: Callable[..., None],
) -> None:
    said: Counter[str] = Counter()
    with hang(qemu_binary, accel, tmp_path) as pid:
        for _ in range(LOOKS):
            status, document, _err = inspect("--pid", pid)
            first = document["findings"][:1]
            found = status == 1 and first[0]["tid"] == pid and HANGS[hang] in first[0]["sentence"]
            said["found" if found else f"{status}: {[f['sentence'] for f in first]}"] += 1
    soak_row(f"{LOOKS} looks at a hung QEMU", f"found by {said['found']} of {LOOKS}")
    assert said == {"found": LOOKS}
