"""The price of the fix: at exit, what waits in the iohandler context can never run.

Nothing is patched: the bottom half is rerouted and put off by gdb until QEMU is told to quit, as
the mail thread did by a patch of its own. gdb has left before anything is looked at.
"""

from __future__ import annotations

import time

from qtrace.experiment.strand import Stranding
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Guest
from qtrace.lab.quit_hang import WAITS_IN, is_blocked, quit_guest, until_proven
from qtrace.lab.saves import recorded
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup
from qtrace.lab.snapshot_jobs import NO_NODE
from qtrace.process.process import Process
from qtrace.qemu.aio.findings import STRANDED, confirm
from qtrace.trace.schema import Event

STALL_AFTER_S = 0.5
APART_S = 0.5


def run(setup: Setup) -> Outcome:
    """One save, put off until the main thread waits for its job and polls only ``main``."""
    began = time.monotonic()
    with recorded(setup, "idle", stall_after_s=STALL_AFTER_S) as (guest, pump):
        version = guest.qmp.version
        with Stranding(LiveQemu(Process(guest.pid)), BOTTOM_HALF) as stranding:
            setup.progress(1)
            guest.qmp.command("snapshot-save", **{"job-id": "job", "tag": "qtrace", **NO_NODE})
            while not stranding.poll(0.1) and time.monotonic() - began < setup.timeout_s:
                pass
            quit_guest(guest)
            seen: list[Event] = []
            while not any(map(is_blocked, seen)) and time.monotonic() - began < setup.timeout_s:
                stranding.poll(0.1)
                seen += pump.take()
        times = len(stranding.seen)
        # gdb has left; what is seen now is QEMU's alone.
        seen += until_proven(pump, began + setup.timeout_s)
        sentence = _inspect(guest)
        return Outcome(
            version,
            1,
            time.monotonic() - began,
            facts={"put_off": times, "inspect": sentence, "warnings": pump.warnings},
            lines=(f"put off {times} times, until QEMU was told to quit", f"inspect: {sentence}"),
            proven=BOTTOM_HALF in sentence and "iohandler" in sentence and WAITS_IN in sentence,
        )


def _inspect(guest: Guest) -> str:
    """What `qtrace inspect` says of the process, from two looks of its own."""
    looker = Looker(LiveQemu(Process(guest.pid)))
    first = looker.look()
    time.sleep(APART_S)
    findings = confirm(first, looker.look())
    return next((f.sentence for f in findings if f.kind == STRANDED), "nothing is stranded")


SCENARIO = Scenario(
    name="stranded",
    explanation="rerouted and put off until quit: main waits for ever, nobody can run it",
    expected="stranded",
    rounds=1,
    timeout_s=30.0,
    run=run,
)
