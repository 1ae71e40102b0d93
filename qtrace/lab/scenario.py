"""What a scenario of the laboratory is, and running one from guest to verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtrace.lab.guest import Accelerator

BOTTOM_HALF = "snapshot_save_job_bh"


@dataclass(frozen=True)
class Setup:
    """What a scenario is run with.

    Attributes:
        qemu: path of a qemu-system-x86_64.
        accel: ``tcg`` or ``kvm``.
        rounds: how often to try at most.
        timeout_s: how long to try at most, in seconds.
        trace: what to record to: a CSV, or with ``everything`` a raw file.
        force: overwrite it.
        progress: called with the number of rounds done so far.
        steer: force the thread that the scenario is about, instead of waiting for chance.
        everything: record every bottom half (`--all`), not only the one that it is about.
    """

    qemu: Path
    accel: Accelerator
    rounds: int
    timeout_s: float
    trace: Path
    force: bool
    progress: Callable[[int], None]
    steer: bool = False
    everything: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a scenario did; the evidence is in its trace.

    Attributes:
        qemu_version: as QEMU's own QMP greeting tells.
        rounds: how many were done.
        seconds: how long these took, without booting and arming.
        facts: what it has measured beside the trace, JSON-able.
        lines: the same for people.
        proven: whether they are as the scenario claims.
    """

    qemu_version: str
    rounds: int
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    proven: bool = True


@dataclass(frozen=True)
class Scenario:
    """One verdict, reproduced on a stock QEMU.

    Attributes:
        name: as on the command line.
        explanation: one line.
        expected: the verdict it shows.
        rounds: default of ``Setup.rounds``.
        timeout_s: default of ``Setup.timeout_s``.
        run: boots a guest, records it, and returns when the recording has ended.
        steerable: whether it can be left to chance or steered (``Setup.steer``).
        bottom_half: the one that it is about.
    """

    name: str
    explanation: str
    expected: str
    rounds: int
    timeout_s: float
    run: Callable[[Setup], Outcome]
    steerable: bool = False
    bottom_half: str = BOTTOM_HALF


def run_scenario(
    scenario: Scenario, setup: Setup, settle: Callable[[], Path] | None = None
) -> dict[str, Any]:
    """Run it and judge its trace: the report of ``qtrace analyze``, and the scenario's facts.

    Args:
        settle: called when the recording has ended; makes the trace of what was recorded to.

    Returns:
        The report's keys and ``scenario``, ``expected``, ``shown`` (whether the verdict is
        the expected one, and what was measured agrees), ``qemu`` (path), ``qemu_version``,
        ``accel``, ``rounds``, ``seconds``, ``facts``, ``lines``.

    Raises:
        LabFailed, QmpFailed: the guest does not start or does not answer.
        QtraceError: the recorder cannot record.
    """
    outcome = scenario.run(setup)
    # pandas takes longer to import than a guest to boot; and a recorder runs without it.
    from qtrace.analysis import judge

    trace = setup.trace if settle is None else settle()
    report = judge([trace], only=[scenario.bottom_half] if setup.everything else None)
    return {
        "scenario": scenario.name,
        "expected": scenario.expected,
        "shown": report["verdict"] == scenario.expected and outcome.proven,
        "qemu": str(setup.qemu),
        "qemu_version": outcome.qemu_version,
        "accel": setup.accel,
        "rounds": outcome.rounds,
        "seconds": round(outcome.seconds, 3),
        "facts": outcome.facts,
        "lines": list(outcome.lines),
        **report,
    }


class Stopwatch:
    """Counts rounds until the set-up's limits are reached."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._began = time.monotonic()
        self.rounds = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def next_round(self) -> bool:
        """Whether another round may begin; counts it."""
        if self.rounds >= self._setup.rounds or self.seconds >= self._setup.timeout_s:
            return False
        self.rounds += 1
        self._setup.progress(self.rounds)
        return True
