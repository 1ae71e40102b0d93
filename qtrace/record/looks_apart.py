"""A child that looks at the target for a recorder that has given its capabilities up.

It is forked before the first probe is set, closes what it has of BPF, keeps the two capabilities
that looking into other users' processes takes, and answers questions until its socket is closed.
Both sides send lines of JSON: whoever has come to rule one of them has not the other yet.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, NoReturn

from qtrace.errors import NoSuchProcess, QtraceError, TargetError
from qtrace.host import privileges
from qtrace.host.forked import live_with_parent
from qtrace.host.unanswered import watch_over_this_thread
from qtrace.inspection.qemu import LiveQemu
from qtrace.machine.thread_files import SystemCall
from qtrace.record.stall import Stalls
from qtrace.record.target_end import Watcher
from qtrace.trace.schema import Event

KEPT = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
# The least time between two questions whether a look is due.
PERIOD_NS = 10_000_000
# What pending bottom halves are counted by.
COUNTED = frozenset({"schedule", "run"})
COLUMNS = tuple(field.name for field in fields(Event))


class LooksApart:
    """``Stalls`` in a child, and what else of the target only that may read.

    Attributes:
        pid: the child's.
    """

    def __init__(self, qemu: LiveQemu, stalls: Stalls) -> None:
        self._qemu = qemu
        self._sentences: list[str] = []
        self._pending = 0
        self._unsent: list[list[Any]] = []
        self._asked_ns = 0
        ours, theirs = socket.socketpair()
        # Both have it in common: who looks for garbage in it writes to each of its pages.
        gc.freeze()
        # The child's threads and buffers begin anew: this one has none that are under way.
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _Child(theirs, qemu, stalls).serve()
        theirs.close()
        self._lines: _Lines | None = _Lines(ours)
        qemu.read_system_call = self._system_call

    # What Stalls has, too.

    @property
    def pending(self) -> int:
        return self._pending

    def warnings(self) -> list[str]:
        said = self._sentences[:]
        self._sentences.clear()
        return said

    def saw(self, events: Iterable[Event]) -> None:
        self._unsent += [_packed(event) for event in events if event.event in COUNTED]

    def begin(self, drain: Callable[[], list[Event]]) -> list[Event]:
        return self._rows(self._ask("begin", drain=drain))

    def check(self) -> list[Event]:
        now = time.monotonic_ns()
        if now - self._asked_ns < PERIOD_NS:
            return []
        self._asked_ns = now
        return self._rows(self._ask("check"))

    def end(self) -> list[Event]:
        return self._rows(self._ask("end"))

    # What else it reads.

    def status(self) -> dict[str, int]:
        """See ``Watcher.status``."""
        return dict(self._ask("status") or {})

    def _system_call(self, tid: int) -> SystemCall | None:
        call = self._ask("system call", tid)
        return SystemCall(call[0], tuple(call[1]), *call[2:]) if call else None

    def close(self) -> None:
        """Let it end; it holds nothing that would have to be put back."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
            os.kill(self.pid, signal.SIGKILL)
            # Not waited for: the kernel may not let it end, as it may not answer it.
            os.waitpid(self.pid, os.WNOHANG)

    def _rows(self, answer: Any) -> list[Event]:
        return [_unpacked(row) for row in answer or ()]

    def _ask(self, what: str, about: int = 0, drain: Callable[[], list[Event]] = list) -> Any:
        """The answer; None when there is nobody to give one any more.

        Raises NoSuchProcess, TargetError.
        """
        lines = self._lines
        if lines is None:
            return None
        unsent, self._unsent = self._unsent, []
        number = lines.send({"what": what, "about": about, "saw": unsent})
        while (reply := lines.receive()) is not None:
            if reply["number"] != number:
                continue  # of a question that was broken off
            if "drain" in reply:
                lines.send({"events": [_packed(event) for event in drain()]}, number)
                continue
            self._pending = reply["pending"]
            self._sentences += reply["sentences"]
            for tid, role in reply["roles"]:
                self._qemu.roles.prove(tid, role)
            if "gone" in reply:
                raise NoSuchProcess(self._qemu.pid)
            if "error" in reply:
                raise TargetError(*reply["error"])
            return reply["answer"]
        self.close()
        self._sentences.append("nobody looks at the target any more: the child that did has ended")
        return None


class _Lines:
    """Numbered lines of JSON over a socket. Who breaks off in between loses none."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._read = bytearray()
        self._number = 0

    def send(self, message: dict[str, Any], number: int | None = None) -> int:
        """Its number. That nobody reads it shows when there is no answer."""
        if number is None:
            self._number = number = self._number + 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self._end.sendall(json.dumps({"number": number, **message}).encode() + b"\n")
        return number

    def receive(self) -> dict[str, Any] | None:
        """The next one; None at the end."""
        while b"\n" not in self._read:
            try:
                more = self._end.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._read += more
        line, _, rest = self._read.partition(b"\n")
        self._read = rest
        return dict(json.loads(line))

    def close(self) -> None:
        self._end.close()


class _Child:
    """The other side."""

    def __init__(self, end: socket.socket, qemu: LiveQemu, stalls: Stalls) -> None:
        self._lines = _Lines(end)
        self._qemu = qemu
        self._stalls = stalls
        self._told: dict[int, str] = {}

    def serve(self) -> NoReturn:
        """Answer until nobody asks any more."""
        try:
            self._confine()
            watcher = Watcher(self._qemu.pid)
            while (asked := self._lines.receive()) is not None:
                self._answer(asked, watcher)
        finally:
            os._exit(0)

    def _confine(self) -> None:
        live_with_parent()
        for fd in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if os.readlink(fd).startswith("anon_inode:bpf"):
                    os.close(int(fd.name))
        privileges.give_up(KEPT)
        watch_over_this_thread(self._give_up)

    def _give_up(self, error: QtraceError) -> None:
        self._reply(self._number, error=[error.message, error.remedy])
        os._exit(1)

    def _answer(self, asked: dict[str, Any], watcher: Watcher) -> None:
        stalls, self._number = self._stalls, asked["number"]
        stalls.saw(_unpacked(row) for row in asked["saw"])
        answer: dict[str, Any] = {}
        try:
            if asked["what"] == "begin":
                answer["answer"] = [_packed(row) for row in stalls.begin(self._drain)]
            elif asked["what"] == "check":
                answer["answer"] = [_packed(row) for row in stalls.check()]
            elif asked["what"] == "end":
                answer["answer"] = [_packed(row) for row in stalls.end()]
            elif asked["what"] == "status":
                answer["answer"] = watcher.status()
            else:
                call = self._qemu.read_system_call(asked["about"])
                answer["answer"] = astuple(call) if call else None
        except NoSuchProcess:
            answer["gone"] = True
        except QtraceError as error:
            answer["error"] = [error.message, error.remedy]
        self._reply(self._number, **answer)

    def _reply(self, number: int, **answer: Any) -> None:
        proven = self._qemu.roles.proven
        new = [(tid, role) for tid, role in proven.items() if self._told.get(tid) != role]
        self._told = dict(proven)
        pending, sentences = self._stalls.pending, self._stalls.warnings()
        state = {"pending": pending, "sentences": sentences, "roles": new}
        self._lines.send(state | answer, number)

    def _drain(self) -> list[Event]:
        """What the recorder has taken up to now."""
        self._lines.send({"drain": True}, self._number)
        reply = self._lines.receive()
        return [_unpacked(row) for row in reply["events"]] if reply else []


def _packed(event: Event) -> list[Any]:
    return [getattr(event, name) for name in COLUMNS]


def _unpacked(row: list[Any]) -> Event:
    columns = dict(zip(COLUMNS, row, strict=True))
    return Event(**columns | {"stack": tuple(columns["stack"])})
