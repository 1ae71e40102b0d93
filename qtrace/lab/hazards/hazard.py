"""What a hazard is, and how often it shows, beside its control."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qtrace.errors import LabFailed, QmpFailed
from qtrace.lab.guest import Accelerator
from qtrace.lab.hunt.core_sentence import explain_core
from qtrace.lab.hunt.devices import DEVICES
from qtrace.lab.hunt.hunt_guest import HuntGuest
from qtrace.lab.hunt.hunting import find_qemu_img, make_disks
from qtrace.record.pump import pumped
from qtrace.record.recording_options import RecordingOptions

# A control is tried for so long, or so many times as long as the hazard took to come.
CONTROL_S, CONTROL_TIMES = 5.0, 20


@dataclass(frozen=True)
class Setting:
    """What one try is given.

    Attributes:
        qemu, accel: what boots the guest.
        control: leave out what the hazard needs.
        seconds: how long to try at most.
        files: a folder with a disk for the guest.
        trace: record every bottom half to this raw file; None for no recording.
        keep: where to leave a core; None for nowhere.
        asked: whether somebody wants the end.
    """

    qemu: Path
    accel: Accelerator
    control: bool
    seconds: float
    files: Path
    trace: Path | None
    keep: Path | None
    asked: Callable[[], bool]

    @contextmanager
    def guest(self, device: str, *, iothread: bool = False) -> Iterator[HuntGuest]:
        """A fresh one, whose device ``qtrace lab hunt`` has, too; recorded where that was asked."""
        guest = HuntGuest(self.qemu, self.accel, DEVICES[device], self.files, iothread=iothread)
        with guest, ExitStack() as stack:
            if self.trace is not None:
                options = RecordingOptions(
                    self.trace, everything=True, force=True, qmp_socket=guest.second_qmp_socket
                )
                stack.enter_context(pumped(guest.pid, options, "hazard ended"))
            yield guest


@dataclass(frozen=True)
class Try:
    """What one fresh guest showed.

    Attributes:
        version: of its QEMU.
        shown: whether the hazard came.
        what: it, in a sentence.
        turns: how often the commands were given until then.
        seconds: how long that took.
        facts: what was counted, JSON-able.
    """

    version: str
    shown: bool
    what: str
    turns: int
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hazard:
    """One.

    Attributes:
        name: as on the command line.
        explanation: one line.
        control: what its control leaves out.
        tries: how many fresh guests, and as many for the control.
        seconds: how long each tries at most.
        attempt: one of them.
        assertion: what QEMU says as it dies of it; of others it may die, too.
    """

    name: str
    explanation: str
    control: str
    tries: int
    seconds: float
    attempt: Callable[[Setting], Try]
    assertion: str = ""


@dataclass(frozen=True)
class Asked:
    """What somebody wants of a hazard; see ``Setting``."""

    qemu: Path
    accel: Accelerator
    tries: int
    seconds: float
    trace: Path | None
    keep: Path | None
    asked: Callable[[], bool]
    progress: Callable[[bool, int, Try], None]


def show_hazard(hazard: Hazard, asked: Asked) -> dict[str, Any]:
    """Try it and its control in turn, each in a fresh guest.

    Returns:
        JSON-able: ``hazard``, ``explanation``, ``control`` (what it leaves out), ``qemu``,
        ``version``, ``accel``, ``tries`` and ``controls`` (a list of ``Try`` each), ``shown``
        (whether it came, and in no control).

    Raises:
        LabFailed: the guest does not start.
    """
    found: dict[bool, list[Try]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="qtrace-hazard-") as folder:
        make_disks(Path(folder), find_qemu_img())
        for number in range(asked.tries):
            for control in (False, True):
                if asked.asked():
                    break
                seconds = asked.seconds
                if control:
                    took = found[False][-1].seconds
                    seconds = min(seconds, max(CONTROL_S, CONTROL_TIMES * took))
                setting = Setting(
                    asked.qemu, asked.accel, control, seconds, Path(folder),
                    None if control or number else asked.trace, asked.keep, asked.asked,
                )  # fmt: skip
                one = hazard.attempt(setting)
                found[control].append(one)
                asked.progress(control, number + 1, one)
    if not found[False]:
        raise LabFailed("it was ended before the first try had an answer", "let it go on")
    return {
        "hazard": hazard.name,
        "explanation": hazard.explanation,
        "control": hazard.control,
        "qemu": str(asked.qemu),
        "version": found[False][0].version,
        "accel": asked.accel,
        "tries": [asdict(one) for one in found[False]],
        "controls": [asdict(one) for one in found[True]],
        "shown": any(one.shown for one in found[False])
        and not any(one.shown for one in found[True]),
    }


class Turns:
    """Counts the turns of one try until its time is up."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._began = setting, time.monotonic()
        self.count = 0

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def go_on(self) -> bool:
        """Whether there is time for another one, which it counts."""
        if self.seconds >= self._setting.seconds or self._setting.asked():
            return False
        self.count += 1
        return True


def until_dead(
    hazard: Hazard, setting: Setting, guest: HuntGuest, turns: Turns, turn: Callable[[int], None]
) -> Try:
    """Take turns, which get their number, until QEMU is dead or the time is up.

    The hazard has shown when QEMU has aborted by its assertion; the core says where.

    Raises:
        QmpFailed: QEMU does not answer, and lives.
    """
    version = guest.qmp.version
    root, exe = (Path(os.readlink(f"/proc/{guest.pid}/{name}")) for name in ("root", "exe"))
    try:
        while turns.go_on():
            turn(turns.count)
    except QmpFailed:
        if guest.wait(1.0) is None:
            raise
    seconds, status = turns.seconds, guest.wait(0)
    if status is None:
        return Try(version, False, f"alive after {turns.count} times", turns.count, seconds)
    core, said = guest.core, guest.said
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    facts = {
        "ended": how,
        "said": said[-1] if said else "",
        "core": explain_core(core, exe, root) if core else "none was left",
    }
    if core is not None and setting.keep is not None:
        shutil.move(core, setting.keep / f"{hazard.name}-{guest.pid}.core")
    what = f"{how} at time {turns.count}: {facts['said']}"
    shown = status == -signal.SIGABRT and hazard.assertion in facts["said"]
    return Try(version, shown, what, turns.count, seconds, facts)
