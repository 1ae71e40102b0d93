"""The control: the same snapshots of the same machine, whose guest leaves its devices alone."""

from __future__ import annotations

from qtrace.lab.saves import record_saves
from qtrace.lab.scenario import Outcome, Scenario, Setup


def run(setup: Setup) -> Outcome:
    """All the rounds, whatever the rows show."""
    return record_saves(setup, "idle", lambda rows: False)


SCENARIO = Scenario(
    name="main-loop",
    explanation="the same snapshots with an idle guest: all run in the main loop, no finding",
    expected="main-loop",
    rounds=200,
    timeout_s=300.0,
    run=run,
)
