"""A look at a QEMU that gdb holds for a moment: then running threads show their stacks too.

The only thing in ``qtrace.target`` that stops the target. gdb sets no breakpoint and calls
nothing; should this process die, the kernel sends gdb SIGHUP, on which it lets go (SIGTERM
and SIGKILL would not be as safe).
"""

from __future__ import annotations

import ctypes
import json
import select
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from qtrace.errors import RecorderUnavailable
from qtrace.target.aio.model import Look
from qtrace.target.arch_x86_64 import DWARF_NUMBERS, RETURN_ADDRESS
from qtrace.target.live import LiveSource
from qtrace.target.look import Looker
from qtrace.target.process import Process
from qtrace.target.source import State

# gdb reads libraries' symbols with every thread stopped: it needs none of them.
GDB = (
    "gdb", "-nx", "-q", "-iex", "set debuginfod enabled off", "-iex", "set auto-solib-add off",
    "-iex", "set pagination off", "-iex", "set confirm off", "-iex", "set prompt",
)  # fmt: skip
READY, REGISTERS, DONE = "qtrace-ready", "qtrace-registers", "qtrace-done"
# One line of gdb's Python: every thread's registers, the newest frame's.
PRINT_REGISTERS = (
    "python import json; "
    "each = {t.ptid[1]: (t.switch(), {n: int(gdb.newest_frame().read_register(n)) % 2**64"
    f" for n in {list(DWARF_NUMBERS)!r}}})[1] for t in gdb.selected_inferior().threads()}}; "
    f"print('{REGISTERS} ' + json.dumps(each))"
)
# The longest that the guest is held; a stop takes 0.2 to 0.6 s.
LONGEST_S = 3.0
START_S = 20.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def look_while_stopped(process: Process) -> tuple[Look, float]:
    """A look with every thread's stack, and for how long the guest was held, in ms at most.

    Raises:
        RecorderUnavailable: no gdb, or it cannot attach.
    """
    tracer = process.tracer()
    if tracer:
        raise RecorderUnavailable(
            f"process {process.pid} is already traced by process {tracer}",
            "inspect it without --gdb, which needs nobody's leave",
        )
    # What takes long (symbols, unwind tables) is read before the guest is held.
    source = _StoppedSource(process)
    looker = Looker(source)
    looker.look()
    with _Gdb() as gdb:
        began = time.monotonic()
        try:
            source.registers = gdb.attach(process.pid)
            look = looker.look()
        finally:
            gdb.detach()
            paused_ms = (time.monotonic() - began) * 1e3
    # It was stopped for this look only.
    return replace(look, stopped=False), paused_ms


class _StoppedSource(LiveSource):
    """A live source that has the registers of all threads while they are held."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.registers: dict[int, dict[int, int]] = {}

    def state(self, tid: int) -> State:
        state = super().state(tid)
        held = self.registers.get(tid)
        return (
            state
            if held is None or not held[RETURN_ADDRESS]
            else State(state.blocked_in, held, state.cpu_ns)
        )


class _Gdb:
    """A gdb that is ready to attach."""

    def __enter__(self) -> Self:
        if shutil.which("gdb") is None:
            raise RecorderUnavailable("there is no gdb here", "apt install gdb, or leave out --gdb")
        self._process = subprocess.Popen(
            GDB, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            bufsize=0, process_group=0, preexec_fn=_let_go_with_parent,
        )  # fmt: skip
        self._said = b""
        self._ask(f"echo {READY}\\n", READY, START_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def attach(self, pid: int) -> dict[int, dict[int, int]]:
        """Stop the process; registers by tid and DWARF number."""
        said = self._ask(f"attach {pid}\n{PRINT_REGISTERS}\necho {DONE}\\n", DONE, LONGEST_S)
        line = next((line for line in said.splitlines() if line.startswith(REGISTERS)), "")
        if not line:
            raise RecorderUnavailable(
                f"gdb cannot stop process {pid}: {_complaint(said)}", "leave out --gdb"
            )
        values: dict[str, Any] = json.loads(line.removeprefix(REGISTERS))
        return {
            int(tid): {DWARF_NUMBERS[name]: value for name, value in registers.items()}
            for tid, registers in values.items()
        }

    def detach(self) -> None:
        """Let the process go on; whatever happens, gdb is told to."""
        try:
            self._ask(f"detach\necho {READY}\\n", READY, LONGEST_S)
        except RecorderUnavailable:
            self._process.send_signal(signal.SIGHUP)
            self._process.wait()

    def _ask(self, commands: str, mark: str, timeout_s: float) -> str:
        """What gdb says until a line that is the mark."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ends = time.monotonic() + timeout_s
        said = b""
        try:
            self._process.stdin.write(commands.encode() + b"\n")
            while mark.encode() + b"\n" not in said:
                left = max(0.0, ends - time.monotonic())
                ready, _, _ = select.select([self._process.stdout], [], [], left)
                piece = self._process.stdout.read(1 << 16) if ready else b""
                if not piece:
                    raise RecorderUnavailable(
                        f"gdb gave no answer within {timeout_s:g} s", "leave out --gdb"
                    )
                said += piece
        except BrokenPipeError as error:
            raise RecorderUnavailable("gdb ended", "leave out --gdb") from error
        return said.decode("utf-8", "replace")


def _complaint(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and DONE not in line]
    return lines[-1] if lines else "it says nothing"


def _let_go_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
