"""A place in a recording that moves on by itself, and what keys do to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FASTER, SLOWER = 2.0, 0.5
# An arrow goes on by as much as is played in so many seconds.
STEP_S = 1.0
SLOWEST, FASTEST = 1e-6, 1e3
KEYS = "space stops, n p next and previous finding, arrows move, + - speed, q ends"


@dataclass
class Player:
    """Where in a recording it is; all times are nanoseconds of the recording.

    Attributes:
        begin_ns, end_ns: of the recording.
        findings: when each finding begins, the worst first.
        speed: seconds of the recording in one second.
        finding: the number of the finding that was gone to last, from 0 on; -1 for none.
    """

    begin_ns: int
    end_ns: int
    findings: Sequence[int] = ()
    speed: float = 1.0
    paused: bool = False
    finding: int = -1
    over: bool = False
    now_ns: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.now_ns < 0:
            self.now_ns = self.begin_ns

    def passed(self, seconds: float) -> None:
        """So much time has gone by."""
        if not self.paused:
            self._go(self.now_ns + int(seconds * self.speed * 1e9))
            # At its end there is nothing more to play.
            self.paused = self.now_ns == self.end_ns

    def go_to(self, number: int) -> None:
        """To where a finding begins, and stay there; past the last one the first is next."""
        if self.findings:
            self.finding = number % len(self.findings)
            self._go(self.findings[self.finding])
            self.paused = True

    def key(self, key: str) -> None:
        """What one key does; unknown ones do nothing."""
        step = int(STEP_S * self.speed * 1e9)
        if key == "q":
            self.over = True
        elif key == " ":
            self.paused = not self.paused
            if not self.paused and self.now_ns == self.end_ns:
                self.now_ns = self.begin_ns
        elif key in ("n", "p"):
            self.go_to(self.finding + 1 if key == "n" else max(self.finding, 0) - 1)
        elif key in ("+", "-"):
            faster = self.speed * (FASTER if key == "+" else SLOWER)
            self.speed = min(max(faster, SLOWEST), FASTEST)
        elif key in ("right", "left"):
            self._go(self.now_ns + (step if key == "right" else -step))
        elif key in ("home", "end"):
            self._go(self.begin_ns if key == "home" else self.end_ns)

    def _go(self, time_ns: int) -> None:
        self.now_ns = min(max(time_ns, self.begin_ns), self.end_ns)
