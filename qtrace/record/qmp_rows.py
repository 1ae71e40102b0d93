"""QMP commands on their way, from taken to answered: rows for those that are worth it.

Management software asks a QEMU many times a second. A command that is answered at once, with
nothing else going on meanwhile, is counted and leaves no row.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from qtrace.binary.module import Module
from qtrace.machine.architectures import HOST
from qtrace.machine.memory import Memory, read_word
from qtrace.process.hit import Hit
from qtrace.roles import Role
from qtrace.trace.schema import Event

FIRST, SECOND = HOST.arguments[:2]
STEPS = ("command", "begin", "end", "reply")
# A command that takes longer gets its rows in any case.
LONG_NS = 10_000_000
# qmp_dispatch()'s frame and its caller's: all steps of a command are met so near on one stack.
NEAR = 8192
MAX_NAME = 256


@dataclass(slots=True)
class _Command:
    """One command under way.

    Attributes:
        sp: the stack pointer where it was taken: the dispatcher's coroutine, or a thread.
        inside: thread and stack pointer of do_qmp_dispatch_bh() while it is carried out.
        waiting: its steps so far, as long as nobody knows whether they are worth their rows.
    """

    number: int
    name: str
    sp: int
    began_ns: int
    inside: tuple[int, int] = (0, 0)
    waiting: list[_Step] = field(default_factory=list)
    shown: bool = False


@dataclass(slots=True)
class _Step:
    """A step of a command, as it was met."""

    step: str
    hit: Hit
    role: Role
    monitor: int | None = None
    callback: int = 0
    opaque: int = 0

    def row(self, command: _Command) -> Event:
        hit, detail = self.hit, {"step": self.step, "number": command.number}
        if self.monitor is not None:
            detail["monitor"] = f"{self.monitor:#x}"
        return Event(
            hit.time_ns, "qmp", hit.tid, hit.thread, self.role, command.name,
            callback=self.callback, opaque=self.opaque, detail=detail,
        )  # fmt: skip


class Commands:
    """The QMP commands of one recording.

    Attributes:
        taken: how many there were.
        left_out: how many of them got no rows.
    """

    def __init__(self, module: Module, memory: Memory) -> None:
        self._module = module
        self._memory = memory
        self._statuses: list[str] = []
        self._open: list[_Command] = []
        self.taken = self.left_out = 0

    def step(self, step: str, hit: Hit, role: Role) -> list[Event]:
        """A step of a command was met; the rows that are to be written now."""
        sp = hit.registers[HOST.stack_pointer]
        if step == "command":
            taken = self._new(self.text(hit, SECOND), sp, hit.time_ns)
            return self._add(taken, _Step(step, hit, role))
        if step == "begin":
            # struct QmpDispatchBH, on the dispatcher's stack: command and monitor come first.
            opaque = hit.registers[FIRST]
            command, monitor = struct.unpack_from("<2Q", hit.behind(FIRST))
            found = self._find(opaque) or self._new(
                self._string(read_word(self._memory, command) or 0), opaque, hit.time_ns
            )
            found.inside = (hit.tid, sp)
            return self._add(found, _Step(step, hit, role, monitor, hit.address, opaque))
        if step == "end":
            ended = next((c for c in self._open if c.inside == (hit.tid, sp)), None)
            return self._add(ended, _Step(step, hit, role)) if ended else []
        answered = self._find(sp)
        if answered is None:
            return []
        rows = self._add(answered, _Step(step, hit, role, hit.registers[FIRST]))
        self._open.remove(answered)
        if not answered.shown:
            self.left_out += 1
        return rows

    def show(self) -> list[Event]:
        """Commands under way are worth their rows: those that waited."""
        return [row for command in self._open for row in self._show(command)]

    def long(self, now_ns: int) -> list[Event]:
        """Those that waited of commands that take long by now."""
        late = [c for c in self._open if now_ns - c.began_ns > LONG_NS]
        return [row for command in late for row in self._show(command)]

    def oldest_ns(self) -> int | None:
        """When the oldest step that may still become a row was met."""
        return min((c.began_ns for c in self._open if c.waiting), default=None)

    def text(self, hit: Hit, register: int) -> str:
        """The C string that an argument points at."""
        raw = hit.behind(register)
        if b"\0" in raw and raw[0]:
            return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        # Longer, or too near the end of a page to be copied with it.
        return self._string(hit.registers[register])

    def status(self, number: int) -> str:
        """A job's status in QMP's words, from the target's own JobStatus_lookup."""
        return self._statuses[number] if number < len(self._statuses) else str(number)

    def begin(self, known: Commands | None = None) -> None:
        """Read what has to be read while the target is there, or take it from what did."""
        self._statuses = known._statuses if known else self._read_statuses()

    def _read_statuses(self) -> list[str]:
        """The array of names that ends where one is no identifier."""
        lookup = self._module.symbols.address("JobStatus_lookup")
        array = read_word(self._memory, (lookup or 0) + self._module.bias) if lookup else None
        names: list[str] = []
        while array:
            name = self._string(read_word(self._memory, array + 8 * len(names)) or 0)
            if not name.isidentifier() or len(names) == 32:
                break
            names.append(name)
        return names if "concluded" in names else []

    def _string(self, address: int) -> str:
        raw = self._memory.read(address, MAX_NAME) if address else b""
        return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")

    def _new(self, name: str, sp: int, time_ns: int) -> _Command:
        # One is taken at a time on each stack: an older one here was never seen answered.
        if self._open:
            self._open = [c for c in self._open if not _near(c, sp)]
        self.taken += 1
        command = _Command(self.taken, name, sp, time_ns)
        self._open.append(command)
        return command

    def _find(self, sp: int) -> _Command | None:
        for command in self._open:
            if _near(command, sp):
                return command
        return None

    def _add(self, command: _Command, step: _Step) -> list[Event]:
        command.waiting.append(step)
        long = step.hit.time_ns - command.began_ns > LONG_NS
        return self._show(command) if command.shown or long else []

    def _show(self, command: _Command) -> list[Event]:
        steps, command.waiting = command.waiting, []
        command.shown = True
        return [step.row(command) for step in steps]


def _near(command: _Command, sp: int) -> bool:
    return abs(sp - command.sp) < NEAR
