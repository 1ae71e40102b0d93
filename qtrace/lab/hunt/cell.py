"""A cell of a hunt: one guest, one kind of command, from its start to its end, and what went wrong.

What a cell does is drawn from its seed; when QEMU's threads do their part is not: a cell that found
something finds it again at some rate, not always.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from qtrace.errors import LabFailed, QmpFailed, QtraceError
from qtrace.inspection.inspector import Inspector
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_look import Requests
from qtrace.lab.guest import Accelerator
from qtrace.lab.hunt.cell_recording import traced
from qtrace.lab.hunt.core_sentence import explain_core
from qtrace.lab.hunt.devices import DEVICES
from qtrace.lab.hunt.hunt_guest import HuntGuest
from qtrace.lab.hunt.qmp_turns import COMMANDS, Client, DidNotEnd, EndNow
from qtrace.lab.migration_sink import MigrationSink
from qtrace.process.process import Process

Outcome = Literal["died", "hung", "lied", "left-behind", "slow", "ok", "did-not-start", "skipped"]
# The worst first.
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
FINDINGS: tuple[Outcome, ...] = OUTCOMES[:4]
End = Literal["quit", "term", "kill"]
END_S = 8.0
# How long the guest's counter may stand still while it runs.
STILL_S = 2.0
REFUSALS = 3


@dataclass(frozen=True)
class Build:
    """A QEMU: its path, its version, and the devices that it knows."""

    path: Path
    version: str
    models: frozenset[str]


@dataclass(frozen=True)
class Cell:
    """One.

    Attributes:
        seed: what its chances are drawn from; see ``seed_of``.
    """

    build: Build
    device: str
    command: str
    iothread: bool
    accel: Accelerator
    seed: str

    @property
    def name(self) -> str:
        """Of its folder and files."""
        where = "iothread" if self.iothread else "main"
        parts = (self.build.version.split()[0], self.device, self.command, where, self.accel)
        return "_".join((*parts, self.seed))

    @property
    def missing(self) -> list[str]:
        """What of its device this build does not have."""
        return [one for one in DEVICES[self.device].models if one not in self.build.models]


@dataclass
class Result:
    """What became of a cell.

    Attributes:
        outcome: the worst that was seen.
        what: in a sentence; empty where all was well.
        end: how it was ended.
        seconds: all of it.
        turns: rounds of its command.
        asked: commands that QEMU was given.
        refused: the commonest refusals, with how often.
        slowest: the command that was answered last, and after how many seconds.
        guest_rounds, checked, wrong, verified, corrupt: what the guest has counted.
        said: the last line that QEMU wrote.
        lints: of the recording, those that found something.
        kept: what was kept of it: a core, a recording, what an inspect showed.
    """

    cell: Cell
    outcome: Outcome = "ok"
    what: str = ""
    end: End = "quit"
    seconds: float = 0.0
    turns: int = 0
    asked: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    slowest: str = ""
    slowest_s: float = 0.0
    guest_rounds: int = 0
    checked: int = 0
    wrong: int = 0
    verified: int = 0
    corrupt: int = 0
    said: str = ""
    lints: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def note(self, outcome: Outcome, what: str) -> None:
        """Something that went wrong: the worst is its outcome, all of it is told."""
        if OUTCOMES.index(outcome) < OUTCOMES.index(self.outcome):
            self.outcome = outcome
            self.what = f"{what}; {self.what}" if self.what else what
        else:
            self.what = f"{self.what}; {what}" if self.what else what


@dataclass(frozen=True)
class Limits:
    """What bounds a cell.

    Attributes:
        seconds: for its commands.
        files: the folder of ``make_disks``.
        keep: where a core and the like are kept; None for nowhere.
        record: record every bottom half, and let the lints look.
        asked: whether somebody wants the hunt to end.
    """

    seconds: float
    files: Path
    keep: Path | None
    record: bool
    asked: Callable[[], bool]


def seed_of(*parts: object) -> str:
    """A cell's seed: the version of what is drawn from it, and eight hex digits."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    return f"{SEED_VERSION}-{digest[:8]}"


# To be counted up whenever a seed comes to mean something else.
SEED_VERSION = "h1"


def run_cell(cell: Cell, qemu_img: str, limits: Limits) -> Result:
    """From the guest's start to its end. Raises nothing of QEMU's doing."""
    result, began = Result(cell), time.monotonic()
    if cell.missing:
        result.outcome, result.what = "skipped", f"this build has no {', '.join(cell.missing)}"
        return result
    chance = random.Random(cell.seed)
    ends: tuple[End, ...] = ("quit", "quit", "term", "kill")
    result.end = chance.choice(ends)
    guest = HuntGuest(
        cell.build.path, cell.accel, DEVICES[cell.device], limits.files,
        iothread=cell.iothread, eventfd=chance.random() < 0.5, more=_more(cell.command),
    )  # fmt: skip
    try:
        with guest:
            _Life(guest, result, limits, chance, qemu_img).live()
    except LabFailed as failed:
        result.outcome, result.what = "did-not-start", failed.message
    result.seconds = round(time.monotonic() - began, 2)
    return result


def learn(build: Build, files: Path) -> None:
    """Look at a guest of it once: what its code tells takes a while to find, and is kept."""
    with suppress(LabFailed), HuntGuest(build.path, "tcg", DEVICES["pflash"], files) as guest:
        Requests(Looker(LiveQemu(Process(guest.pid)))).look()


def _more(command: str) -> tuple[str, ...]:
    """What a command needs beside the device."""
    spare = ("-device", "virtio-scsi-pci,id=spare,addr=4,romfile=")
    return spare if command == "hotplug" else ()


class _Life:
    """What is done to one guest, and what is seen of it."""

    def __init__(
        self, guest: HuntGuest, result: Result, limits: Limits, chance: random.Random, image: str
    ) -> None:
        self.guest, self.result, self.limits = guest, result, limits
        self._killed = False
        self.client = Client(guest.qmp, chance, guest.folder, image)
        # Where its files are, as long as it lives.
        self.sysroot = Path(os.readlink(f"/proc/{guest.pid}/root"))
        self.exe = Path(os.readlink(f"/proc/{guest.pid}/exe"))

    def live(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(MigrationSink(self.guest.folder))
            if self.limits.record:
                self.result.lints = stack.enter_context(traced(self.guest, self._keep("parquet")))
            try:
                self._rounds()
                self._check_guest()
                self._check_requests()
                self._end()
            except DidNotEnd as error:
                self._hung(str(error))
            except QmpFailed as error:
                if self.guest.wait(1.0) is None:
                    self._hung(f"no answer to {self.client.last}: {error.message}")
        self._ended()

    def _rounds(self) -> None:
        turn = COMMANDS[self.result.cell.command]
        until = time.monotonic() + self.limits.seconds
        with suppress(EndNow):
            while time.monotonic() < until and not self.limits.asked():
                turn(self.client)
                self.result.turns += 1

    def _check_guest(self) -> None:
        program = self.guest.device.program
        if "once" in program.flags or program.routine in ("nothing", "eject"):
            return
        if self.result.cell.command == "quit-in-job":
            return
        status = self.client.ask("query-status") or {}
        if status.get("status") == "running" and not self.guest.works(STILL_S):
            self._hung(f"the guest runs and does nothing for {STILL_S:g} s")

    def _check_requests(self) -> None:
        """Whoever stops the guest waits for all its requests: none may be left."""
        if self.result.cell.command == "quit-in-job":
            return
        self.client.ask("stop")
        look = Requests(self._looker()).look()
        if left := [look.sentence(one) for one in look.causes]:
            self.result.note(
                "left-behind", f"the guest is stopped, and {len(left)} requests are in flight:"
                f" {left[0]}",
            )  # fmt: skip
        self.client.ask("cont")

    def _end(self) -> None:
        end = self.result.end
        if end == "kill":
            self._killed = True
            os.kill(self.guest.pid, signal.SIGKILL)
        elif end == "term":
            os.kill(self.guest.pid, signal.SIGTERM)
        else:
            with suppress(QmpFailed):
                self.client.ask("quit")
        if self.guest.wait(END_S) is None:
            self._hung(f"it does not end within {END_S:g} s of {end}")

    def _hung(self, what: str) -> None:
        """As `qtrace inspect` tells: where it shows nobody who is in the way, the host may only
        have been slow."""
        try:
            answer = Inspector(self._looker()).ask().answer
        except QtraceError as error:
            self.result.note("slow", f"{what} (no look at it: {error.message})")
            return
        sentences = [one.sentence for one in answer.findings]
        said = sentences or [f"nothing is stuck: {'; '.join(answer.remarks) or 'no remark'}"]
        self.result.note("hung" if sentences else "slow", f"{what}. inspect: {said[0]}")
        if path := self._keep("inspect.txt"):
            path.write_text("\n".join([*said, *answer.remarks, *self.guest.said]) + "\n")

    def _looker(self) -> Looker:
        return Looker(LiveQemu(Process(self.guest.pid)))

    def _ended(self) -> None:
        """What its end, its memory and its last words tell."""
        result, client = self.result, self.client
        status = self.guest.wait(0)
        if status is not None and status < 0 and not self._killed:
            name = signal.Signals(-status).name
            said = self.guest.said
            result.note("died", f"{name} at {client.last}: {said[-1] if said else 'no message'}")
            self._core()
        elif status is not None and status > 0:
            result.note("died", f"exit status {status} at {client.last}")
        self._count()
        self._left_processes()

    def _core(self) -> None:
        core = self.guest.core
        if core is None:
            self.result.what += " (no core: its size is limited, or core_pattern hands it on)"
            return
        self.result.what += f". core: {explain_core(core, self.exe, self.sysroot)}"
        if self.limits.keep is not None:
            # One of each kind will do: each takes as much as QEMU's own memory.
            kind = hashlib.sha256("".join(self.guest.said[-1:]).encode()).hexdigest()[:8]
            path = self.limits.keep / f"{self.result.cell.build.version}_{kind}.core"
            self.result.kept.append(path.name)
            if not path.exists():
                shutil.move(core, path)

    def _count(self) -> None:
        result, client, counted = self.result, self.client, self.guest.results
        result.guest_rounds, result.checked, result.wrong = (
            counted.rounds, counted.checked, counted.wrong
        )  # fmt: skip
        result.verified, result.corrupt = counted.verified, counted.corrupt
        if counted.wrong:
            result.note(
                "lied", f"{counted.wrong:,} of {counted.checked:,} reads of a register that is"
                f" always {counted.first:#x} gave another value, the last {counted.last_wrong:#x}",
            )  # fmt: skip
        if counted.corrupt:
            result.note(
                "lied", f"{counted.corrupt:,} of {counted.verified:,} blocks were not the disk's:"
                f" the last began with {counted.last_corrupt:#x}",
            )  # fmt: skip
        result.asked, result.refused = client.asked, dict(client.refused.most_common(REFUSALS))
        result.slowest, result.slowest_s = client.slowest, round(client.slowest_s, 3)
        said = self.guest.said
        result.said = said[-1] if said else ""

    def _left_processes(self) -> None:
        """Its children, as a migration's, should have ended with it."""
        self.guest.kill()
        for pid in processes_of(self.guest.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.result.said = f"its process {pid} was left and is ended; {self.result.said}"

    def _keep(self, suffix: str) -> Path | None:
        """A name for what is kept."""
        if self.limits.keep is None:
            return None
        path = self.limits.keep / f"{self.result.cell.name}.{suffix}"
        self.result.kept.append(path.name)
        return path


def processes_of(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(name)) == group:
                    found.append(int(name))
    return found
