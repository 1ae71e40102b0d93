"""QEMU issue 2111: a vCPU thread runs the snapshot job's bottom half inside its own poll."""

from __future__ import annotations

from qtrace.lab.saves import record_saves
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup
from qtrace.trace.schema import Event


def run(setup: Setup) -> Outcome:
    """Snapshots beside a guest that writes to its flash chip, until one shows it."""
    return record_saves(setup, "pflash", lambda rows: any(map(ran_in_vcpu_poll, rows)))


def ran_in_vcpu_poll(event: Event) -> bool:
    """Whether this row is the bottom half on a vCPU thread, inside ``aio_poll()``."""
    return (
        event.event == "run"
        and event.name == BOTTOM_HALF
        and event.role == "vcpu"
        and any(frame.partition("+")[0] == "aio_poll" for frame in event.stack)
    )


SCENARIO = Scenario(
    name="vcpu-poll",
    explanation="snapshots while the guest writes to flash: one runs on a vCPU (QEMU issue 2111)",
    expected="vcpu-poll",
    rounds=20_000,
    timeout_s=300.0,
    run=run,
    steerable=True,
)
