"""``source gdbscripts/aio.py`` in gdb: each command in its own gdb, on live QEMUs and cores."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest
from tests.conftest import QEMUS, ROOT, version
from tests.live.attached import is_running
from tests.live.gdb_session import Target, core_of, gdb, live, session
from tests.live.hung import JOB, guest_with_sleeping_job, hung_guest

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

SAVE = "snapshot_save_job_bh"
STRANDED = "co_schedule_bh_cb"
CONTEXTS = ["main", "iohandler", "iothread:iot0", "iothread:mon_iothread"]
STATE = Path(__file__).with_name("gdb_state.py")
COMMANDS = ("contexts", "bh", "handlers", "threads", "jobs", "why")


def _combination(number: int, accel: str, soak: bool) -> object:
    binary = QEMUS[number][0]
    name = f"{version(binary) if binary else f'qemu{number}'}-{accel}"
    marks = [pytest.mark.soak] if soak else []
    if accel == "kvm":
        marks.append(pytest.mark.kvm)
    return pytest.param(QEMUS[number], accel, id=name, marks=marks)


# Each QEMU and each accelerator once; all of them in the soak.
everywhere = pytest.mark.parametrize(
    ("qemu_binary", "accel"),
    [_combination(0, "tcg", False), _combination(1, "kvm", False),
     _combination(0, "kvm", True), _combination(1, "tcg", True)],
    indirect=True,
)  # fmt: skip
live_and_core = pytest.mark.parametrize("kind", ["live", "core"])

Hung = Callable[[Path, str, str], Target]


@pytest.fixture(scope="module")
def hung() -> Iterator[Hung]:
    """The hung QEMU of each kind, or a core of it, made when first asked for."""
    made: dict[tuple[Path, str], dict[str, Target]] = {}
    with ExitStack() as stack:

        def get(qemu: Path, accel: str, kind: str) -> Target:
            if (qemu, accel) not in made:
                guest = stack.enter_context(hung_guest(qemu, accel))
                # Not tmp_path: pytest keeps that, and cores are large.
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qtrace-core-"))
                made[qemu, accel] = {
                    "live": live(guest.pid, qemu),
                    "core": core_of(guest.pid, qemu, Path(folder)),
                }
            return made[qemu, accel][kind]

        yield get


@contextmanager
def save_begun(guest: Guest) -> Iterator[None]:
    """Ask for a snapshot that fails at its first check, without waiting for the answer."""
    arguments = {"job-id": "save", "tag": "x", "vmstate": "nosuch", "devices": ["nosuch"]}
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"}')
        qmp.sendall(json.dumps({"execute": "snapshot-save", "arguments": arguments}).encode())
        yield


def columns(printed: str) -> list[list[str]]:
    """The rows of a table without its titles; columns are two spaces or more apart."""
    return [re.split(r"\s{2,}", line) for line in printed.splitlines()[1:]]


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
    assert all(int(row[2].split()[0]) == target.pid for row in rows[:2])
    # Bottom halves, fd handlers (the notifier and the signals), scheduled coroutines.
    assert rows[1][3:] == ["1", "2", "1"]


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
    assert sum(" vcpu " in line for line in lines.values()) == 1
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


def test_why_asked_again_after_a_while_says_that_it_stays(hung: Hung) -> None:
    qemu = Path(QEMUS[0][0] or "")
    with session(hung(qemu, "tcg", "live")) as gdb_session:
        assert "At this moment" in gdb_session.ask("aio why")
        # In the same stop nothing can have changed: no proof.
        assert "At this moment" in gdb_session.ask("aio why")
        gdb_session.send("continue &")
        gdb_session.send("interrupt")
        gdb_session.read_until("SIGINT")
        said = gdb_session.ask("aio why")
    assert f"{STRANDED} is stranded" in said
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
def test_break_stops_where_the_bottom_half_is_scheduled_and_where_it_runs(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel, firmware="idle") as guest:
        target = live(guest.pid, qemu_binary)
        with session(target) as gdb_session:
            assert "Breakpoint 1 at" in gdb_session.ask(f"aio break {SAVE}")
            assert "Breakpoint 2 at" in gdb_session.ask(f"aio break {SAVE} --run")
            gdb_session.send("continue")
            with save_begun(guest):
                said = gdb_session.read_until("Breakpoint 1,")
            assert f"{SAVE} is scheduled into main by {guest.pid} (qemu-system-x86)" in said
            assert f"{SAVE} is not pending" in gdb_session.ask(f"aio bh {SAVE}")
            gdb_session.ask("set scheduler-locking on")
            gdb_session.ask("nexti")
            gdb_session.ask("set scheduler-locking off")
            rows = columns(gdb_session.ask(f"aio bh {SAVE}"))
            assert rows[0][1] == "main"
            assert rows[0][4] == "PENDING|SCHEDULED|ONESHOT"
            gdb_session.send("continue")
            said = gdb_session.read_until("Breakpoint 2,")
            assert f"{SAVE} runs on {guest.pid} (qemu-system-x86)" in said
        concluded = {"id": "save", "status": "concluded"}
        guest.qmp.wait_event("JOB_STATUS_CHANGE", lambda event: bool(event["data"] == concluded))


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


def test_the_call_sites_are_those_of_qtrace_scan(hung: Hung, qemu_binary: Path) -> None:
    from qtrace.target.elf import Elf
    from qtrace.target.maps import Module
    from qtrace.target.scan_cache import scan_module

    target = hung(qemu_binary, "tcg", "core")
    printed = gdb(target, f"source {STATE}", "python sites()")
    found = {tuple(line.split()) for line in printed.splitlines()}
    scan = scan_module(Module(Elf(qemu_binary), 0))
    expected = {
        (f"{site.address:#x}", half.name, f"{half.callback:#x}")
        for half in scan.bottom_halves
        for site in half.sites
        if half.name.isidentifier()
    }
    assert expected
    assert found == expected


@pytest.mark.bpf
def test_break_stops_beside_an_ebpf_probe(qemu_binary: Path) -> None:
    from tests.live.attached import attached

    with Guest(qemu_binary, "tcg", firmware="idle") as guest, attached(guest.pid, "-b", SAVE):
        with session(live(guest.pid, qemu_binary)) as gdb_session:
            said = gdb_session.ask(f"aio break {SAVE} --run")
            assert "an eBPF probe sits on" in said
            assert "one instruction later" in said
            gdb_session.send("continue")
            with save_begun(guest):
                said = gdb_session.read_until("Breakpoint 1,")
            assert f"{SAVE} runs on {guest.pid}" in said
        assert is_running(guest.pid)


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
    assert "blk_co_pwrite < qemu_coroutine_switch < qemu_aio_coroutine_enter" in line


def test_a_request_that_cannot_be_met_is_one_line(hung: Hung) -> None:
    qemu = Path(QEMUS[0][0] or "")
    target = hung(qemu, "tcg", "core")
    expected = {
        "aio contexts now": "usage: aio contexts",
        "aio bh a b": "usage: aio bh [NAME]",
        "aio handlers nowhere": "no AioContext is called nowhere; there are main, iohandler, ",
        "aio coroutine": "usage: aio coroutine ADDRESS",
        "aio coroutine 16": "there is no memory at 0x10",
        "aio coroutine $sp": "is no coroutine that sleeps; aio jobs shows those of jobs",
        "aio coroutine no_such_symbol": 'aio coroutine: No symbol "no_such_symbol" in current',
        "aio break": "usage: aio break NAME [--run]",
        "aio break x": "a core file cannot run",
        "aio nonsense": 'Undefined aio command: "nonsense".  Try "help aio".',
    }
    for command, message in expected.items():
        said = gdb(target, command).strip()
        assert message in said
        assert "\n" not in said


def test_a_breakpoint_that_cannot_be_set_is_one_line(hung: Hung) -> None:
    qemu = Path(QEMUS[0][0] or "")
    lines = gdb(
        hung(qemu, "tcg", "live"),
        f"aio break {SAVE[:-1]}",
        "aio break thread_pool_completion_bh",
    ).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"is called {SAVE[:-1]}; did you mean {SAVE}?")
    assert lines[1].endswith("aio break thread_pool_completion_bh --run stops where it runs")


def test_without_a_stopped_qemu_every_command_says_what_it_needs(hung: Hung) -> None:
    nothing = gdb(None, *(f"aio {name}" for name in (*COMMANDS, "coroutine 1", "break x")))
    assert set(nothing.splitlines()) == {
        "no process and no core: attach PID, or start gdb QEMU CORE"
    }
    shell = gdb(None, "file /bin/sleep", "starti 60", "aio bh", "kill")
    assert "has no aio_poll(): not a QEMU program" in shell
    with session(hung(Path(QEMUS[0][0] or ""), "tcg", "live")) as gdb_session:
        gdb_session.send("continue &")
        assert "the target is running: interrupt it first" in gdb_session.ask("aio bh")
        gdb_session.send("interrupt")
        gdb_session.read_until("SIGINT")


def test_names_are_completed(hung: Hung) -> None:
    qemu = Path(QEMUS[0][0] or "")
    printed = gdb(
        hung(qemu, "tcg", "live"), "complete aio ", "complete aio bh co", "complete aio why co",
        "complete aio handlers io", "complete aio handlers iothread:i",
        "complete aio break snapshot_s", f"complete aio break {SAVE} -",
    ).splitlines()  # fmt: skip
    assert printed == [
        *(f"aio {name}" for name in sorted((*COMMANDS, "coroutine", "break"))),
        f"aio bh {STRANDED}", f"aio why {STRANDED}",
        *(f"aio handlers {name}" for name in CONTEXTS[1:]), "aio handlers iothread:iot0",
        f"aio break {SAVE}", f"aio break {SAVE} --run",
    ]  # fmt: skip
    assert gdb(None, "complete aio bh ", "complete aio break s") == ""


def test_every_command_has_help() -> None:
    overview = gdb(None, "help aio")
    for name in (*COMMANDS, "coroutine", "break"):
        assert re.search(rf"^aio {name} -- [A-Z].*\.$", overview, re.MULTILINE), overview
        assert f"aio {name}" in gdb(None, f"help aio {name}")


def test_qemus_own_gdb_commands_live_beside_these(tmp_path: Path) -> None:
    """QEMU's scripts/qemu-gdb.py has a package with a module ``aio`` too, and a prefix."""
    package = tmp_path / "qemugdb"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "aio.py").write_text("WHOSE = 'theirs'\n")
    theirs = tmp_path / "qemu-gdb.py"
    theirs.write_text(
        "import os, sys, gdb\n"
        "sys.path.append(os.path.dirname(__file__))\n"
        "from qemugdb import aio\n"
        "class Qemu(gdb.Command):\n"
        "    def __init__(self): super().__init__('qemu', gdb.COMMAND_DATA, prefix=True)\n"
        "class Handlers(gdb.Command):\n"
        "    def __init__(self): super().__init__('qemu handlers', gdb.COMMAND_DATA)\n"
        "    def invoke(self, arg, tty): print(aio.WHOSE)\n"
        "Qemu()\nHandlers()\n"
    )
    printed = gdb(None, f"source {theirs}", "qemu handlers", "aio handlers", "qemu handlers")
    assert printed.splitlines() == [
        "theirs", "no process and no core: attach PID, or start gdb QEMU CORE", "theirs",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["gdbscripts/aio.py", "qtrace/gdbscripts/aio.py"])
def test_it_can_be_sourced_by_either_path_and_by_another_script(path: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(f"import gdb\ngdb.execute('source {ROOT / path}')\n")
    assert "aio bh -- " in gdb(None, "help aio", script=other)


def test_a_job_that_sleeps_is_shown_while_the_guest_runs(qemu_binary: Path) -> None:
    with guest_with_sleeping_job(qemu_binary, "tcg") as guest:
        printed = gdb(live(guest.pid, qemu_binary), "aio jobs", "aio why")
        assert f"{JOB}  backup  running" in printed
        assert "nothing is in the way: nothing is pending" in printed
        assert guest.qmp.command("query-status")["status"] == "running"
