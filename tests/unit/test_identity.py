"""A process that runs another program, or whose id another process has, is not taken for itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qtrace.errors import HasChanged, NoSuchProcess
from qtrace.process import maps
from qtrace.process.live_source import LiveSource
from qtrace.process.maps import AddressSpace, Mapping, read_maps
from qtrace.process.process import Identity, Process

# A program that becomes another one when it reads a line.
BECOMES = "import os, sys; print(flush=True); input(); os.execv(sys.argv[1], sys.argv[1:])"
TIMEOUT_S = 30


@pytest.mark.parametrize(
    "program",
    [("/bin/sleep", "60"), (sys.executable, "-c", "import time; time.sleep(60)")],
    ids=["another", "the same"],
)
def test_a_program_that_executes_another_is_not_mixed_up_with_it(program: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BECOMES, *program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            # Popen returns while the kernel has yet to map the program.
            process.stdout.readline()
            source = LiveSource(Process(process.pid))
            assert source.held(process.pid) == ""
            before = _command_line(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
            deadline = time.monotonic() + TIMEOUT_S
            while _command_line(process.pid) in (before, b""):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            with pytest.raises(HasChanged, match=f"process {process.pid} is another one by now"):
                source.held(process.pid)
        finally:
            process.kill()


def test_a_program_is_known_in_the_very_moment_of_its_exec() -> None:
    """When Popen returns, the kernel may have yet to map it."""
    for _ in range(100):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            try:
                assert Process(process.pid).binary.name == "cat"
            finally:
                process.kill()


def test_the_kernels_own_page_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there before anything of a program is mapped that is being executed."""
    space = AddressSpace(os.getpid())
    own = read_maps(os.getpid())
    page = Mapping(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, "--xp", 0, 0, "00:00", "[vsyscall]", "")
    for mappings, has_code in (([page], False), ([*own, page], True)):
        monkeypatch.setattr(maps, "read_maps", lambda _pid, shown=mappings: shown)
        space.refresh()
        assert space.has_code == has_code
        # What was known stays so.
        assert space.module_of("/proc/self/exe") is not None


def test_a_process_that_has_ended_is_gone() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            # Popen returns while the kernel has yet to map the program.
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            source = LiveSource(Process(process.pid))
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoSuchProcess):
            source.held(process.pid)
    with pytest.raises(NoSuchProcess):
        source.held(process.pid)


def test_another_process_of_the_same_id_began_later() -> None:
    stat = Path("/proc/self/stat").read_text()
    own = Identity.of(stat)
    assert own is not None
    assert min(own.address_space) > 1
    later = Identity(own.started + 1, own.address_space)
    assert own.may_be(own)
    assert not own.may_be(later)
    # What another user may not know, and what an ending process has no more, tells nothing.
    for unknown in (0, 1):
        assert own.may_be(Identity(own.started, (unknown, unknown)))
        assert not own.may_be(Identity(own.started + 1, (unknown, unknown)))
    assert Identity.of("") is None
    assert Identity.of("1 (a) b) Z 0 0") is None


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
