"""The probes of the watched bottom halves for one binary, as plain data: they can be had without a
disassembler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qtrace.event_kinds import STEPS
from qtrace.sites.scan import BottomHalf

# Exported and rarely called: recorded beside the watched bottom halves, with their stacks.
PLAIN_CALLS = ("save_snapshot", "load_snapshot", "vm_stop", "qemu_thread_join")

SiteKind = Literal["schedule", "run", "return", "call", "qmp", "job"]


@dataclass(frozen=True, slots=True)
class Site:
    """One place to probe: a link-time address in the executable, and what a hit means.

    ``name`` is the bottom half's or function's, or the step of a QMP command. What must stand
    there: a call (or jump) to ``callee``, or with ``leaves`` the end of a function, else the
    start of one, ``past`` bytes of endbr64 behind it. ``fields``: see ``CallSite``; ``argument``:
    see ``QmpSite``.
    """

    kind: SiteKind
    name: str
    vaddr: int
    callee: int = 0
    leaves: bool = False
    fields: tuple[int, ...] = ()
    argument: int = 0
    past: int = 0

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def is_step(self) -> bool:
        """Whether no verdict depends on it, and where it was reached from tells nothing."""
        return self.kind in STEPS


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """The watched bottom halves, and every site that records them.

    Attributes:
        by_all: globs of those that are judged by the rows of `--all`, and have no site.
        notes: why, in words.
    """

    watched: tuple[BottomHalf, ...]
    sites: tuple[Site, ...]
    by_all: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
