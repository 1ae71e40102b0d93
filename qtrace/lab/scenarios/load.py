"""The same bug in loading a snapshot: the mail thread asks whether that needs the fix too."""

from __future__ import annotations

from qtrace.lab.saves import record_steered
from qtrace.lab.scenario import Outcome, Scenario, Setup
from qtrace.lab.snapshot_jobs import load_nothing

BOTTOM_HALF = "snapshot_load_job_bh"


def run(setup: Setup) -> Outcome:
    return record_steered(setup, BOTTOM_HALF, "vcpu", load_nothing)


SCENARIO = Scenario(
    name="load",
    explanation="snapshot-load's bottom half on a vCPU thread (steered): the same bug",
    expected="vcpu-poll",
    rounds=5,
    timeout_s=30.0,
    run=run,
    bottom_half=BOTTOM_HALF,
)
