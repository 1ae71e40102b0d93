"""``source gdbscripts/aio.py``: each command in its own gdb, on live QEMUs and on cores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest
from tests.conftest import version
from tests.live.support.attached import is_running
from tests.live.support.gdb_cases import COMMANDS, CONTEXTS, STRANDED, Hung, columns, everywhere
from tests.live.support.gdb_session import gdb, live, session
from tests.live.support.hung import JOB, guest_with_sleeping_job

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

live_and_core = pytest.mark.parametrize("kind", ["live", "core"])
STATE = Path(__file__).parent / "support/gdb_state.py"


@live_and_core
@everywhere
def test_contexts_lists_each_context_with_its_home_thread(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    target = hung(qemu_binary, accel, kind)
    rows = columns(gdb(target, "aio contexts"))
    names = [row[0] for row in rows]
    assert names[:2] == CONTEXTS[:2]
    if kind == "live" or version(str(qemu_binary)) != "7.2":
        assert sorted(names[2:]) == CONTEXTS[2:]
    else:
        # Neither this QEMU nor a core has the IOThreads' ids.
        assert [re.sub(r"\d+", "N", name) for name in names[2:]] == ["iothread:N"] * 2
    assert all(int(row[5].split()[0]) == target.pid for row in rows[:2])
    # Bottom halves, fd handlers (the notifier and the signals), scheduled coroutines.
    assert rows[1][2:5] == ["1", "2", "1"]


@live_and_core
@everywhere
def test_bh_lists_what_is_pending(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    ((name, context, callback, opaque, flags, _address),) = columns(
        gdb(hung(qemu_binary, accel, kind), f"aio bh {STRANDED}")
    )
    assert (name, context, flags) == (STRANDED, "iohandler", "PENDING|SCHEDULED")
    assert int(callback, 16)
    assert int(opaque, 16)


@live_and_core
@everywhere
def test_handlers_lists_the_descriptors_of_one_context(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    rows = columns(gdb(hung(qemu_binary, accel, kind), "aio handlers iohandler"))
    assert [row[0] for row in rows] == ["iohandler", "iohandler"]
    for _context, fd, events, read, write, _opaque in rows:
        assert int(fd) > 2
        assert "IN" in events
        assert int(read, 16)
        assert write == "-"


@live_and_core
@everywhere
def test_threads_tells_roles_and_what_each_polls(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    target = hung(qemu_binary, accel, kind)
    printed = gdb(target, "aio threads")
    lines = {int(line.split()[0]): line for line in printed.splitlines()[1:]}
    main = lines[target.pid]
    assert "bdrv_drain_all_begin" in main
    assert "qemu_cleanup, polling `main`" in main
    assert re.search(r"\bmain\s+holds\b", main)
    assert sum(" vcpu " in line for line in lines.values()) == 1, printed
    polling = [line for line in lines.values() if "polling `iothread:" in line]
    assert [" iothread " in line for line in polling] == [True]


@live_and_core
@everywhere
def test_jobs_shows_the_coroutine_of_each(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    job, stack = gdb(hung(qemu_binary, accel, kind), "aio jobs").splitlines()
    assert re.fullmatch(rf"{JOB}  backup  running  coroutine 0x[0-9a-f]+", job)
    assert stack.strip().startswith("qemu_coroutine_switch < ")
    assert " < job_yield < " in stack


@live_and_core
@everywhere
def test_coroutine_unwinds_a_sleeping_one_to_its_first_function(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    target = hung(qemu_binary, accel, kind)
    address = re.findall(r"coroutine (0x[0-9a-f]+)", gdb(target, "aio jobs"))[0]
    first, *frames = gdb(target, f"aio coroutine {address}").splitlines()
    assert first.startswith(f"coroutine {address}, entry 0x")
    assert first.endswith("runs in main")
    assert [frame.split()[0] for frame in frames] == [f"#{n}" for n in range(len(frames))]
    assert "qemu_coroutine_switch" in frames[0]
    assert any(" job_yield+" in frame for frame in frames)
    assert len(frames) == 6


@live_and_core
@everywhere
def test_why_says_who_is_in_the_way(
    hung: Hung, qemu_binary: Path, accel: Accelerator, kind: str
) -> None:
    target = hung(qemu_binary, accel, kind)
    said = gdb(target, f"aio why {STRANDED}")
    assert f"{STRANDED} is stranded in `iohandler`: the only thread that runs it, " in said
    assert f"{target.pid} (" in said
    assert "waits in bdrv_drain_all_begin < " in said
    assert "polling `main`" in said
    # A stopped process may be on its way; a core tells all it ever will.
    assert said.startswith("At this moment ") == (kind == "live")
    assert gdb(target, "aio why no_such_bh") == "no_such_bh is not pending"


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_narrow_screen_nothing_is_wider_than_it(hung: Hung, width: int) -> None:
    asked = [f"aio {name}" for name in COMMANDS]
    wide = gdb(hung.any("core"), *asked)
    narrow = gdb(hung.any("core"), f"set width {width}", *asked)
    assert max(map(len, wide.splitlines())) > 80
    # A name that is longer than the screen stays whole.
    assert all(len(line) <= width or " " not in line.strip() for line in narrow.splitlines())
    assert sorted(narrow.split()) == sorted(wide.split())


def test_why_asked_again_after_a_while_says_that_it_stays(hung: Hung) -> None:
    with session(hung.any("live")) as gdb_session:
        assert "At this moment" in gdb_session.ask("aio why")
        # In the same stop nothing can have changed: no proof.
        assert "At this moment" in gdb_session.ask("aio why")
        gdb_session.send("continue &")
        gdb_session.send("interrupt")
        gdb_session.read_until("SIGINT")
        said = gdb_session.ask("aio why")
    assert f"behind it wait {STRANDED} in `iohandler`" in said
    assert "At this moment" not in said
    assert "seen twice" in said


@everywhere
def test_no_command_writes_to_the_target_or_calls_into_it(
    hung: Hung, qemu_binary: Path, accel: Accelerator
) -> None:
    """Registers, all memory, selected frame, settings and run state stay as they are."""
    target = hung(qemu_binary, accel, "live")
    address = re.findall(r"coroutine (0x[0-9a-f]+)", gdb(target, "aio jobs"))[0]
    asked = [*COMMANDS, f"coroutine {address}"]
    printed = gdb(
        target, "set may-call-functions off", "thread 2", "up",
        f"source {STATE}", "python remember()",
        *(step for name in asked for step in (f"aio {name}", f"python check('{name}')")),
    )  # fmt: skip
    assert [f"{name} unchanged" in printed for name in asked] == [True] * len(asked), printed
    assert is_running(target.pid)


@everywhere
def test_a_vcpu_that_polls_the_main_context_is_shown_so(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel, firmware="pflash") as guest:
        printed = gdb(
            live(guest.pid, qemu_binary), "handle SIGUSR1 nostop noprint pass",
            "tbreak *(long)&aio_poll", "continue", "aio threads",
        )  # fmt: skip
    (vcpu,) = [line for line in printed.splitlines() if re.search(r"\bvcpu\b", line)]
    assert "polling `main`" in vcpu


def test_an_awake_coroutine_has_the_stack_of_its_thread(qemu_binary: Path) -> None:
    with Guest(qemu_binary, "tcg", firmware="pflash") as guest:
        printed = gdb(
            live(guest.pid, qemu_binary), "tbreak *(long)&blk_co_pwrite", "continue",
            "aio coroutine *(long *)($fs_base - 8)", "aio threads",
        )  # fmt: skip
    tid = re.search(r"coroutine 0x[0-9a-f]+ is awake: thread (\d+) is in it", printed)
    assert tid, printed
    # The chain goes on on the stack from which the coroutine was entered.
    (line,) = [line for line in printed.splitlines() if line.startswith(tid[1])]
    assert "vcpu" in line
    assert "blk_co_pwrite < blk_pwrite < memory_region_dispatch_write < " in line


def test_a_job_that_sleeps_is_shown_while_the_guest_runs(qemu_binary: Path) -> None:
    with guest_with_sleeping_job(qemu_binary, "tcg") as guest:
        printed = gdb(live(guest.pid, qemu_binary), "aio jobs", "aio why")
        assert f"{JOB}  backup  running" in printed
        assert "nothing is in the way: nothing is pending" in printed
        assert guest.qmp.command("query-status")["status"] == "running"


@live_and_core
def test_the_request_that_a_drain_waits_for_is_shown_with_its_coroutine(
    hung: Hung, kind: str
) -> None:
    printed = gdb(
        hung.any(kind), "aio nodes", "echo --\\n", "aio requests", "echo --\\n",
        "aio coroutines",
    )  # fmt: skip
    assert "not shown by the code" not in printed
    nodes, requests, coroutines = printed.split("--\n")
    (target,) = [row for row in columns(nodes) if row[0] == "target"]
    assert target[1] == "raw"
    assert re.fullmatch(r"file:#block\d+", target[2])
    assert (target[3], target[4]) == ("1", "drained")
    ((what, node, _device, address, _waits),) = columns(requests)
    assert (what, node) == ("write of 65536 bytes at 0", "target (raw)")
    assert f"coroutine {address} of " in coroutines
    # The job's own, and the monitor's.
    assert "is a job that sleeps" in coroutines
    assert "monitor_qmp_dispatcher_co" in coroutines
    assert re.search(r"^\d+ in use, \d+ free$", coroutines, re.MULTILINE)
