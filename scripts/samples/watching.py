"""Samples that watch the bottom half of a snapshot: each takes the file to record to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from qtrace.experiment.reroute import Rerouting, To
from qtrace.experiment.steer import Steering
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.saves import IDLE_SOCKETS, recorded
from qtrace.lab.scenario import BOTTOM_HALF, Setup
from qtrace.lab.scenarios import SCENARIOS
from qtrace.lab.snapshot_jobs import save, save_round
from qtrace.process.process import Process
from qtrace.record.pump import pumped
from qtrace.record.recording_options import RecordingOptions

Make = Callable[[Path], None]

FORCED, CONTROL, MANY = 12, 60, 3000
REAL_SAVES, MEMORY_MIB = 3, 2048


def scenario(name: str, qemu: Path, accel: Accelerator) -> Make:
    """A scenario of the laboratory as it is."""

    def make(trace: Path) -> None:
        chosen = SCENARIOS[name]
        outcome = chosen.run(_setup(trace, qemu, accel, chosen.rounds, chosen.timeout_s))
        assert outcome.proven, outcome

    return make


def steered(qemu: Path, accel: Accelerator) -> Make:
    """As many saves forced onto the main thread as then onto the vCPU thread."""

    def make(trace: Path) -> None:
        with recorded(_setup(trace, qemu, accel), "pflash") as (guest, _pump):
            target = LiveQemu(Process(guest.pid))
            for run_on in ("main", "vcpu"):
                with Steering(target, BOTTOM_HALF, run_on, FORCED) as steering:
                    _rounds(guest, FORCED, run_on)
                assert [run.as_wanted for run in steering.seen] == [True] * FORCED

    return make


def control(qemu: Path, accel: Accelerator) -> Make:
    """Saves of the same machine, whose guest leaves its devices alone."""

    def make(trace: Path) -> None:
        idle = recorded(_setup(trace, qemu, accel), "idle", idle_sockets=IDLE_SOCKETS)
        with idle as (guest, _pump):
            _rounds(guest, CONTROL)

    return make


def compared(qemu: Path, accel: Accelerator) -> Callable[[Path, Path, Path], None]:
    """One guest, three recordings: as it is, with the context set to the one it is anyway, and
    with the proposed fix.

    gdb stops the guest at each schedule of the second and the third alike, which changes the
    race's odds: only those two differ in nothing but the context.
    """

    def make(stock: Path, held: Path, rerouted: Path) -> None:
        with Guest(qemu, accel, "pflash", idle_sockets=IDLE_SOCKETS) as guest:
            contexts: list[tuple[Path, To | None]]
            contexts = [(stock, None), (held, "main"), (rerouted, "iohandler")]
            for trace, to in contexts:
                options = RecordingOptions(trace, patterns=(BOTTOM_HALF,))
                with pumped(guest.pid, options, "sample ended"), _rerouted(guest, to):
                    _rounds(guest, MANY)

    return make


def real_saves(qemu: Path, accel: Accelerator, to: To | None = None) -> Make:
    """Saves that save: the reply to the command comes late, or with the fix at once."""

    def make(trace: Path) -> None:
        setup = _setup(trace, qemu, accel)
        with (
            recorded(setup, "idle", memory_mib=MEMORY_MIB, disk=True) as (guest, _pump),
            _rerouted(guest, to),
        ):
            for number in range(REAL_SAVES):
                save(guest.qmp, f"save{number}")

    return make


def _setup(
    trace: Path, qemu: Path, accel: Accelerator, rounds: int = 1, timeout_s: float = 60
) -> Setup:
    return Setup(qemu, accel, rounds, timeout_s, trace, force=True, progress=lambda done: None)


def _rerouted(guest: Guest, to: To | None) -> Rerouting | nullcontext[None]:
    return nullcontext() if to is None else Rerouting(LiveQemu(Process(guest.pid)), BOTTOM_HALF, to)


def _rounds(guest: Guest, count: int, name: str = "save") -> None:
    for number in range(count):
        save_round(guest.qmp, f"{name}{number}")
