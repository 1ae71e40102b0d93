"""The same bug in deleting a snapshot."""

from __future__ import annotations

from qtrace.lab.saves import record_steered
from qtrace.lab.scenario import Outcome, Scenario, Setup
from qtrace.lab.snapshot_jobs import delete_nothing

BOTTOM_HALF = "snapshot_delete_job_bh"


def run(setup: Setup) -> Outcome:
    return record_steered(setup, BOTTOM_HALF, "vcpu", delete_nothing)


SCENARIO = Scenario(
    name="delete",
    explanation="snapshot-delete's bottom half on a vCPU thread (steered): the same bug",
    expected="vcpu-poll",
    rounds=5,
    timeout_s=30.0,
    run=run,
    bottom_half=BOTTOM_HALF,
)
