"""No gdb of ours holds a guest for long when one of its threads cannot be stopped.

Such a thread sleeps in the kernel until its file system answers, which it never does here: before
gdb attaches, from the moment that it does, or while it is attached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from qtrace.errors import RecorderFailed, RecorderUnavailable
from qtrace.experiment.reroute import Rerouting
from qtrace.experiment.steer import Steering
from qtrace.experiment.strand import Stranding
from qtrace.gdb import gdb_session as session
from qtrace.gdb.target_state import is_traced_or_stopped, thread_states
from qtrace.inspection.held_look import look_while_stopped
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from tests.live.support.attached import refused
from tests.live.support.dead_fuse import SLEEPERS, DeadFile, Sleeper, guest_on, threads_in_fuse
from tests.live.support.experimenting import WATCHED
from tests.live.support.ptraced import assert_runs_on, until

pytestmark = [pytest.mark.fuse, pytest.mark.gdb, pytest.mark.qemu]

# When the thread falls asleep. "at once" is between the last check and the attach.
When = Literal["before", "at once", "meanwhile"]
WHAT = ("inspect", "attach", "steer vcpu", "steer main", "reroute", "strand")
TIMES = 20
# The host may be busy: what is asserted is that it ends, and the table has the figures.
LATEST_S = 20.0


@contextmanager
def armed(what: str, pid: int, trace: Path) -> Iterator[list[str]]:
    """Something of ours that uses gdb; afterwards the list has what was not as before."""
    problems: list[str] = []
    if what == "attach":
        with start_recording(pid, RecordingOptions(trace, backend="gdb", force=True)) as recording:
            yield problems
        problems += recording.problems()
        return
    qemu = LiveQemu(Process(pid))
    experiments: dict[str, Callable[[], Any]] = {
        "steer vcpu": lambda: Steering(qemu, WATCHED, "vcpu"),
        "steer main": lambda: Steering(qemu, WATCHED, "main"),
        "reroute": lambda: Rerouting(qemu, WATCHED, "iohandler"),
        "strand": lambda: Stranding(qemu, WATCHED),
    }
    with experiments[what]() as experiment:
        yield problems
    problems += experiment.ending.problems


class Holds(threading.Thread):
    """How long some thread of a process was held in one go, at most: ``longest_s`` at the end."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid, self._over = pid, threading.Event()
        self.longest_s = 0.0

    def run(self) -> None:
        since = 0.0
        while not self._over.wait(0.001):
            now = time.monotonic()
            if "t" not in thread_states(self._pid).values():
                since = 0.0
            else:
                since = since or now
                self.longest_s = max(self.longest_s, now - since)

    def __enter__(self) -> Holds:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self.join()


def assert_let_go(guest: Guest, tid: int, sleeper: Sleeper) -> None:
    """Nobody is held, and nobody will be stopped when it wakes up."""
    until(lambda: not is_traced_or_stopped(guest.pid), "being let go")
    assert Process(guest.pid).tracer() == 0
    status = Path(f"/proc/{guest.pid}/task/{tid}/status").read_text()
    assert "SigPnd:\t0000000000000000" in status
    assert list(threads_in_fuse(guest.pid)) == [tid]
    if sleeper != "main":
        assert_runs_on(guest)


def assert_goes_on(guest: Guest, file: DeadFile) -> None:
    file.thaw()
    until(lambda: not threads_in_fuse(guest.pid), "the answers")
    assert_runs_on(guest)


@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_where_a_thread_cannot_be_stopped_gdb_does_not_even_attach(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path, sleeper: Sleeper
) -> None:
    with guest_on(qemu_binary, accel, tmp_path) as (guest, file):
        tid = file.put_to_sleep(guest, sleeper)
        status, err = refused(guest.pid, "--backend", "gdb")
        assert status == 3
        assert f"thread {tid} " in err
        assert "sleeps uninterruptibly in " in err
        assert "--backend ebpf" in err
        assert_let_go(guest, tid, sleeper)
        assert_goes_on(guest, file)


@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_a_gdb_that_waits_for_it_is_ended_and_leaves_no_stop_behind(
    accel: Accelerator, tmp_path: Path, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It falls asleep after the last check: gdb's SIGSTOP would stop the guest when it wakes."""
    with guest_on(find_qemu(), accel, tmp_path) as (guest, file):
        asleep: list[int] = []
        monkeypatch.setattr(
            session,
            "refuse_unstoppable",
            lambda _process: asleep.append(file.put_to_sleep(guest, sleeper)),
        )
        with (
            pytest.raises(RecorderFailed, match=r"it had .* for \d\.\d s: thread ") as failed,
            armed("reroute", guest.pid, tmp_path),
        ):
            pass
        assert f"thread {asleep[0]} " in failed.value.message
        assert_let_go(guest, asleep[0], sleeper)
        assert_goes_on(guest, file)


@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_whoever_falls_asleep_meanwhile_does_not_keep_gdb_from_letting_go(
    accel: Accelerator, tmp_path: Path, sleeper: Sleeper
) -> None:
    with guest_on(find_qemu(), accel, tmp_path) as (guest, file):
        with armed("steer main", guest.pid, tmp_path / "trace.csv") as problems:
            tid = file.put_to_sleep(guest, sleeper)
        # On a busy host gdb may be killed just when it has begun to stop the process.
        assert problems in ([], ["gdb left the process stopped: it was continued"])
        assert_let_go(guest, tid, sleeper)
        assert_goes_on(guest, file)


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before", "at once", "meanwhile"])
@pytest.mark.parametrize("sleeper", ["worker", "main", "iothread"])
@pytest.mark.parametrize("what", WHAT)
def test_20_of_20_guests_run_on(
    qemu_binary: Path,
    accel: Accelerator,
    tmp_path: Path,
    what: str,
    sleeper: Sleeper,
    when: When,
    monkeypatch: pytest.MonkeyPatch,
    soak_row: Callable[..., None],
) -> None:
    if what == "inspect" and when != "before":
        pytest.skip("inspect is there for one look")
    took, held, trace = [], [], tmp_path / "trace.csv"
    for number in range(TIMES):
        # Of QEMU 7.2 an IOThread's export does not outlive two clients.
        with guest_on(qemu_binary, accel, tmp_path / str(number)) as (guest, file):
            with Holds(guest.pid) as holds:
                tid, seconds = _one(what, sleeper, when, guest, file, trace, monkeypatch)
            took.append(seconds)
            held.append(holds.longest_s)
            assert_let_go(guest, tid, sleeper)
            assert_goes_on(guest, file)
    soak_row(
        f"let go of a guest with a thread that cannot stop, asleep {when}",
        f"{len(took)} of {TIMES} ran on",
        f"at most: ended after {max(took):.1f} s, held for {max(held):.2f} s",
    )
    assert max(took) < LATEST_S


def _one(
    what: str,
    sleeper: Sleeper,
    when: When,
    guest: Guest,
    file: DeadFile,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[int, float]:
    """The tid of the thread that sleeps, and how long it took to end from then on."""
    asleep: list[tuple[int, float]] = []

    def fall_asleep(_process: object = None) -> None:
        asleep.append((file.put_to_sleep(guest, sleeper), time.monotonic()))

    if when == "before":
        fall_asleep()
        if what == "inspect":
            assert [t.tid for t in look_while_stopped(Process(guest.pid)).awake] == [asleep[0][0]]
        else:
            with pytest.raises(RecorderUnavailable), armed(what, guest.pid, trace):
                pass
    elif when == "at once":
        with monkeypatch.context() as patch:
            patch.setattr(session, "refuse_unstoppable", fall_asleep)
            with pytest.raises(RecorderFailed), armed(what, guest.pid, trace):
                pass
    else:
        with armed(what, guest.pid, trace) as problems:
            fall_asleep()
        assert problems == []
    tid, since = asleep[0]
    return tid, time.monotonic() - since
