"""``qtrace inspect`` on live, hung and dead QEMUs; it never stops one unless it is asked to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qtrace.errors import NoSuchProcess
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu, Qemu
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.machine.syscalls import syscall_name
from qtrace.machine.thread_files import read_system_call
from qtrace.process.live_source import LiveSource
from qtrace.process.process import Process
from qtrace.qemu.aio.findings import confirm
from qtrace.qemu.aio.model import Look
from qtrace.sites.scan_cache import scan_module
from tests.builds import BUILDS, QEMU
from tests.conftest import absent
from tests.limits import TIMEOUT_S
from tests.live.support.attached import is_running, wait_for
from tests.live.support.blocked_main import SAVE, guest_with_monitors, save_left_behind
from tests.live.support.gdb_cases import STRANDED, Hung, everywhere
from tests.live.support.gdb_session import core_of
from tests.live.support.hung import guest_with_sleeping_job, hung_guest
from tests.live.support.inspecting import (
    check_hung,
    context,
    functions,
    in_words,
    inspect,
    thread,
)
from tests.live.support.terminal import on_terminal

pytestmark = pytest.mark.qemu


@everywhere
def test_a_hung_qemu_is_explained_in_one_sentence(
    hung: Hung, qemu_binary: Path, accel: Accelerator
) -> None:
    pid = hung(qemu_binary, accel, "live").pid
    status, document, _err = inspect("--pid", pid)
    assert status == 1
    assert document["verdict"] == "stuck"
    check_hung(document, pid)
    finding = document["findings"][0]
    assert finding["looks"] == 2
    assert "same waiting frames" in finding["proof"]
    assert document["paused_ms"] is None
    words = in_words("--pid", pid)
    assert finding["sentence"] in words
    assert f"BQL: held by {pid} (main)" in words


@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_terminal_long_lines_go_on_further_in(hung: Hung, columns: int) -> None:
    command = [sys.executable, "-m", "qtrace", "inspect", "--pid", str(hung.any("live").pid)]
    status, shown = on_terminal(columns, command)
    assert status == 1
    assert all(len(line) <= columns for line in shown)
    at = next(n for n, line in enumerate(shown) if line.startswith("stuck: "))
    sentence = [shown[at]]
    while shown[at + len(sentence)].startswith("    "):
        sentence.append(shown[at + len(sentence)].strip())
    assert f"; behind it wait {STRANDED} in `iohandler`" in " ".join(sentence)
    assert len(sentence) > 1


@pytest.mark.gdb
@everywhere
def test_a_core_of_the_hung_qemu_shows_the_same(
    hung: Hung, qemu_binary: Path, accel: Accelerator
) -> None:
    target = hung(qemu_binary, accel, "core")
    core = target.arguments[1]
    status, document, _err = inspect("--core", core)
    # One look proves nothing by itself.
    assert status == 4
    check_hung(document, target.pid)
    assert document["findings"][0]["looks"] == 1
    assert document["findings"][0]["proof"] is None
    assert inspect("--core", core, "--exe", qemu_binary)[0] == 4


@everywhere
def test_the_snapshot_job_left_behind_is_found_and_gone_when_it_ran(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with guest_with_monitors(qemu_binary, accel) as guest, save_left_behind(guest) as release:
        status, document, _err = inspect("--pid", guest.pid)
        assert status == 1
        finding = next(f for f in document["findings"] if SAVE in f["bottom_halves"])
        assert (finding["verdict"], finding["polls"]) == ("stuck", None)
        assert re.search(rf"; behind it wait .*{SAVE}.* in `main`", finding["sentence"])
        assert "qmp_chardev_open_file_source" in finding["waits_in"]
        main = thread(document, guest.pid)
        assert main["blocked_in"].startswith(("open", "syscall"))
        release()
        guest.qmp.wait_event("JOB_STATUS_CHANGE", lambda e: e["data"]["status"] == "concluded")
        status, document, _err = inspect("--pid", guest.pid)
        assert (status, document["verdict"]) == (0, "clear")


@everywhere
def test_a_job_that_sleeps_is_nothing_to_report(qemu_binary: Path, accel: Accelerator) -> None:
    with guest_with_sleeping_job(qemu_binary, accel) as guest:
        status, document, _err = inspect("--pid", guest.pid)
        (iothread,) = guest.qmp.command("query-iothreads")
        vcpus = [cpu["thread-id"] for cpu in guest.qmp.command("query-cpus-fast")]
    assert (status, document["verdict"], document["findings"]) == (0, "clear", [])
    assert context(document, "iothread:iot0")["tid"] == iothread["thread-id"]
    assert thread(document, iothread["thread-id"])["role"] == "iothread"
    assert [thread(document, tid)["role"] for tid in vcpus] == ["vcpu"]
    assert {c["name"] for c in document["contexts"]} >= {"main", "iohandler", "iothread:iot0"}
    handlers = context(document, "iohandler")["handlers"]
    assert handlers
    assert all(handler["fd"] >= 0 and not handler["deleted"] for handler in handlers)
    assert document["jobs"][0]["stack"]


@everywhere
def test_threads_without_names_have_their_roles(qemu_binary: Path, accel: Accelerator) -> None:
    arguments = ["-object", "iothread,id=iot0"]
    with Guest(qemu_binary, accel, "idle", debug_threads=False, extra_args=arguments) as guest:
        _status, document, _err = inspect("--pid", guest.pid)
        (iothread,) = guest.qmp.command("query-iothreads")
        (cpu,) = guest.qmp.command("query-cpus-fast")
    assert thread(document, guest.pid)["role"] == "main"
    assert thread(document, iothread["thread-id"])["role"] == "iothread"
    if thread(document, cpu["thread-id"])["stack"]:
        assert thread(document, cpu["thread-id"])["role"] == "vcpu"
    tids = {c["tid"]: c["name"] for c in document["contexts"]}
    assert tids[iothread["thread-id"]].startswith("iothread:")


def look_at_busy(qemu: Path, accel: Accelerator, count: int) -> tuple[int, int]:
    """Every look at a busy guest must be true, and nothing may seem stuck.

    Returns how many pending bottom halves were shown, and how many lists as torn.
    """
    with Guest(qemu, accel) as guest:
        process = Process(guest.pid)
        looker = Looker(LiveQemu(process))
        before: Look | None = None
        looks = pending = torn = 0
        halves = scan_module(process.binary).bottom_halves
        callbacks = {h.name: h.callback + process.binary.bias for h in halves if h.watchable}
        # Two hundred are over in a moment: it may be one in which nothing is pending.
        while looks < count or not pending:
            assert looks < 50 * count, "nothing pending was shown"
            looks += 1
            look = looker.look()
            contexts = {c.address for c in look.contexts}
            torn += len(look.torn)
            assert [c.name for c in look.contexts[:2]] == ["main", "iohandler"]
            for half in look.bottom_halves:
                assert half.ctx in contexts
                assert half.name.isidentifier(), half
                # Where the caller passes a variable, its name is that ("cb").
                function = (
                    half.cb if half.name == "cb" else callbacks.setdefault(half.name, half.cb)
                )
                assert half.cb == function, half
                pending += 1
            for each in look.threads:
                assert all(poll.ctx in (0, *contexts) for poll in each.polls)
            if before is not None and look.time_ns - before.time_ns > 50_000_000:
                assert confirm(before, look) == []
                before = look
            before = before or look
        return pending, torn


@everywhere
def test_two_hundred_looks_at_a_busy_qemu_are_all_true(
    qemu_binary: Path, accel: Accelerator
) -> None:
    look_at_busy(qemu_binary, accel, 200)


@pytest.mark.soak
@everywhere
def test_two_thousand_looks_at_a_busy_qemu_are_all_true(
    qemu_binary: Path, accel: Accelerator, soak_row: Callable[..., None]
) -> None:
    pending, torn = look_at_busy(qemu_binary, accel, 2000)
    shown = f"{pending} pending bottom halves shown, all true"
    soak_row("2,000 looks at a busy QEMU", shown, f"{torn} lists named as torn, not shown")


def test_a_watch_prints_a_line_per_look_and_ends_with_its_finding(hung: Hung) -> None:
    status, lines = watched(hung, '"verdict": "stuck"', "--format", "json")
    looks = [json.loads(line) for line in lines]
    assert status == 1
    assert len(looks) >= 2
    assert looks[0]["findings"] == []
    assert looks[-1]["findings"][0]["verdict"] == "stuck"
    assert all(look["schema_version"] == 2 for look in looks)


def test_a_watch_tells_a_finding_in_full_when_it_comes_up(hung: Hung) -> None:
    status, lines = watched(hung, "; stuck\n")
    assert status == 1
    first = next(line for line in lines if "stuck" in line)
    assert "; stuck: the main loop does not run: " in first
    assert f"behind it wait {STRANDED} in `iohandler`" in first


def watched(hung: Hung, until: str, *options: str) -> tuple[int, list[str]]:
    """The exit status and the lines of a watch that ends, by Ctrl-C, with one that has this text.

    By no time: where others want the processors a watch takes its looks late.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "qtrace", "inspect", "--pid", str(hung.any("live").pid),
         "--watch", "100ms", *options],
        text=True, stdout=subprocess.PIPE,
    ) as watch:  # fmt: skip
        assert watch.stdout is not None
        lines = []
        for line in watch.stdout:
            lines.append(line)
            if until in line:
                watch.send_signal(signal.SIGINT)
                break
        watch.stdout.read()
        return watch.wait(), lines


def test_a_watch_ends_with_the_process() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        process = subprocess.Popen(
            [sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid), "--watch", "20ms"],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(guest.pid, signal.SIGKILL)
        _out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert f"process {guest.pid} has ended" in err


def loops_of(pid: int) -> list[int]:
    """The main thread and the IOThreads, the monitor's too."""
    names = {int(t.name): (t / "comm").read_text() for t in Path(f"/proc/{pid}/task").iterdir()}
    return [pid, *(tid for tid, name in names.items() if name.startswith("IO "))]


def polls(pid: int, tid: int) -> bool:
    call = read_system_call(pid, tid)
    return call is not None and syscall_name(call.number) in ("poll", "ppoll")


def test_a_stopped_process_is_shown_and_left_stopped() -> None:
    with guest_with_sleeping_job(find_qemu(), "tcg") as guest:

        def all_poll() -> bool:
            return all(polls(guest.pid, tid) for tid in loops_of(guest.pid))

        while True:
            # One may be about to send the last answer: one look at that may show it as stuck.
            wait_for(all_poll)
            os.kill(guest.pid, signal.SIGSTOP)
            wait_for(lambda: state(guest.pid) == "T")
            if all_poll():
                break
            os.kill(guest.pid, signal.SIGCONT)
        status, document, _err = inspect("--pid", guest.pid)
        assert state(guest.pid) == "T"
        os.kill(guest.pid, signal.SIGCONT)
        guest.qmp.command("query-status")
    # Nothing moves in it, which proves nothing.
    assert (status, document["verdict"]) == (4, "inconclusive")
    assert document["stopped"]
    assert document["held"] == "stopped by a signal (SIGSTOP)"
    assert all(finding["proof"] is None for finding in document["findings"])
    main = thread(document, guest.pid)
    assert "main_loop_wait" in functions(main["stack"])


@pytest.mark.gdb
def test_a_process_that_gdb_holds_is_shown_and_not_taken_away() -> None:
    with hung_guest(find_qemu(), "tcg") as guest, ExitStack() as stack:
        gdb = stack.enter_context(
            subprocess.Popen(
                ["gdb", "-nx", "-q", "-iex", "set debuginfod enabled off", "-p", str(guest.pid)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        stack.callback(gdb.kill)
        while Process(guest.pid).tracer() != gdb.pid or state(guest.pid) != "t":
            time.sleep(0.01)
        status, document, _err = inspect("--pid", guest.pid)
        assert status == 4
        check_hung(document, guest.pid)
        status, _document, err = inspect("--pid", guest.pid, "--gdb")
        assert status == 3
        assert f"already traced by process {gdb.pid}" in err
        assert Process(guest.pid).tracer() == gdb.pid


def test_nothing_of_the_guest_is_changed() -> None:
    with guest_with_sleeping_job(find_qemu(), "tcg") as guest:
        process = Process(guest.pid)
        module = process.binary
        code = module.elf.code[0]
        before = process.memory.read(code.vaddr + module.bias, code.filesz)
        assert inspect("--pid", guest.pid)[0] == 0
        assert process.memory.read(code.vaddr + module.bias, code.filesz) == before
        assert is_running(guest.pid)


@pytest.mark.gdb
def test_the_wrong_executable_for_a_core_is_refused() -> None:
    other = BUILDS["backports"]
    if not other.is_here:
        absent("qemu", "it takes two QEMUs: make qemus")
    with guest_with_sleeping_job(find_qemu(), "tcg") as guest, core_file(guest) as core:
        status, _document, err = inspect("--core", core, "--exe", other.files / QEMU)
        assert status == 3
        assert "is not a core of" in err
        assert "build id" in err
        status, _document, err = inspect("--core", core, "--exe", "/nonexistent")
        assert status == 3
        assert "--exe" in err
        with core.open("r+b") as file:
            file.truncate(core.stat().st_size // 2)
        status, _document, err = inspect("--core", core)
        assert status == 3
        assert "truncated" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too short"),
        (b"no core at all" * 10, "no ELF file"),
        (b"\x28\xb5\x2f\xfd" * 20, "zstd -d"),
    ],
    ids=["empty", "text", "compressed"],
)
def test_a_file_that_is_no_core_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "core"
    file.write_bytes(content)
    status, _document, err = inspect("--core", file)
    assert status == 3
    assert words in err


def test_a_program_a_missing_file_or_a_pipe_is_no_core(tmp_path: Path) -> None:
    assert "it is a program or a library" in inspect("--core", find_qemu())[2]
    assert inspect("--core", tmp_path / "none")[0] == 3
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        status, _document, err = inspect("--core", path)
        assert (status, "is no regular file" in err) == (3, True)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--pid", "1", "--core", "x"),
        ("--core", "x", "--watch", "1s"),
        ("--pid", "1", "--exe", "x"),
        ("--pid", "1", "--watch", "1s", "--gdb"),
        ("--pid", "1", "--duration", "1s"),
        ("--pid", "1", "--watch", "0"),
    ],
)  # fmt: skip
def test_options_that_do_not_belong_together(options: tuple[str, ...]) -> None:
    assert inspect(*options)[0] == 2


@pytest.mark.parametrize("pid", [0, 4_000_000])
def test_no_such_process(pid: int) -> None:
    status, _document, err = inspect("--pid", pid)
    assert status == 3
    assert "no process" in err


@pytest.mark.parametrize("at", ["threads", "thread_pointers", "state", "held"])
def test_a_process_that_ends_in_mid_look_is_gone(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        source = LiveSource(Process(guest.pid))
        looker = Looker(Qemu(source))
        looker.look()
        step = getattr(source, at)

        def die(*arguments: object) -> object:
            os.kill(guest.pid, signal.SIGKILL)
            while source.memory.read(source.binary.bias, 1):
                time.sleep(0.001)
            return step(*arguments)

        monkeypatch.setattr(source, at, die)
        with pytest.raises(NoSuchProcess):
            looker.look()


def test_a_process_that_has_ended_is_no_other_program() -> None:
    process = subprocess.Popen(["true"])
    while state(process.pid) != "Z":
        time.sleep(0.001)
    status, _document, err = inspect("--pid", process.pid)
    process.wait()
    assert status == 3
    assert f"process {process.pid} has ended" in err


def test_a_watch_ends_quietly_with_its_reader_and_at_ctrl_c() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        for ends, status in (("reader", 128 + signal.SIGPIPE), ("ctrl-c", 0)):
            watch = subprocess.Popen(
                [sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid),
                 "--watch", "0.02"],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert watch.stdout is not None
            assert watch.stderr is not None
            watch.stdout.readline()
            if ends == "reader":
                watch.stdout.close()
            else:
                watch.send_signal(signal.SIGINT)
            assert watch.stderr.read() == ""
            assert watch.wait(TIMEOUT_S) == status


def test_a_process_that_is_not_qemu() -> None:
    status, _document, err = inspect("--pid", os.getpid())
    assert status == 3
    assert "is not a QEMU program" in err


def test_a_32_bit_process_is_refused(tmp_path: Path) -> None:
    source, program = tmp_path / "pause.S", tmp_path / "pause"
    source.write_text(".globl _start\n_start: mov $29, %eax\nint $0x80\njmp _start\n")
    build = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", str(source), "-o", str(program)]
    if shutil.which("gcc") is None or subprocess.run(build).returncode:
        pytest.skip("no compiler for 32-bit programs: apt install gcc")
    process = subprocess.Popen([program])
    try:
        while os.readlink(f"/proc/{process.pid}/exe") != str(program):
            time.sleep(0.001)
        status, _document, err = inspect("--pid", process.pid)
    finally:
        process.kill()
        process.wait()
    assert status == 3
    assert "32-bit" in err
    assert "x86-64" in err


def test_a_core_of_another_machine_is_refused(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(
        struct.pack("<4sBBBB8xHHI", b"\x7fELF", 2, 1, 1, 0, 4, 243, 1).ljust(128, b"\0")
    )
    status, _document, err = inspect("--core", core)
    assert status == 3
    assert "another machine" in err


def test_without_privilege_the_remedy_is_named() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        run = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
             sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid)],
            text=True, capture_output=True, env=os.environ | {"HOME": "/tmp"},
        )  # fmt: skip
    assert run.returncode == 3
    assert "root" in run.stderr
    assert "Traceback" not in run.stderr


@contextmanager
def core_file(guest: Guest) -> Iterator[Path]:
    # Not tmp_path: pytest keeps that, and cores are large.
    with tempfile.TemporaryDirectory(prefix="qtrace-core-") as folder:
        yield Path(core_of(guest.pid, guest.qemu, Path(folder)).arguments[1])


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
