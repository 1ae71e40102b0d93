"""The kinds of events, one line each: what recorders, files and readers must know of one.

A new kind of `--all` is a line here, its function in probes/all.bpf.c, and its site in
qtrace/sites/all_sites.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EventKind = Literal[
    "attach", "schedule", "run", "return", "cancel", "delete", "call", "co_schedule",
    "blocked", "unblocked", "held", "released", "qmp", "job", "lost", "exit", "rotate", "detach",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind.

    Attributes:
        name: in the column ``event``.
        bottom_half: what becomes of a bottom half, or of the coroutine that one will enter; the
            only ones that come by the million.
        counted: a recorder writes a row for each hit of a watched probe, and their number into
            the detach row.
        step: no verdict depends on it, and where it was reached from tells nothing.
        own_probe: beside `--all`, too, a watched bottom half has its own probe for it.
        look: what a look has seen.
        site: what a site of `--all` is called, in a raw file; empty where it has none.
        arm, disarm: when those sites are armed and taken off, the lowest number first: no schedule
            without the run that may follow, and no return whose run was not there to be seen,
            neither when the probes come nor when they go.
    """

    name: EventKind
    bottom_half: bool = False
    counted: bool = False
    step: bool = False
    own_probe: bool = False
    look: bool = False
    site: str = ""
    arm: int = 0
    disarm: int = 0


KINDS = (
    Kind("schedule", bottom_half=True, counted=True, own_probe=True,
         site="enqueue", arm=4, disarm=2),
    Kind("run", bottom_half=True, counted=True, own_probe=True, site="run", arm=2, disarm=5),
    Kind("return", bottom_half=True, counted=True, step=True, site="return", arm=1, disarm=3),
    Kind("cancel", bottom_half=True, site="cancel", arm=3, disarm=4),
    # An enqueue whose new flags say so.
    Kind("delete", bottom_half=True),
    Kind("co_schedule", bottom_half=True, site="co_schedule", arm=5, disarm=1),
    Kind("call", counted=True),
    Kind("qmp", step=True),
    Kind("job", step=True),
    Kind("blocked", look=True),
    Kind("unblocked", look=True),
    Kind("held", look=True),
    Kind("released", look=True),
    # Of the recording itself.
    Kind("attach"),
    Kind("lost"),
    Kind("exit"),
    Kind("rotate"),
    Kind("detach"),
)  # fmt: skip

NAMES = tuple(kind.name for kind in KINDS)
BOTTOM_HALF = tuple(kind.name for kind in KINDS if kind.bottom_half)
COUNTED = tuple(kind.name for kind in KINDS if kind.counted)
STEPS = tuple(kind.name for kind in KINDS if kind.step)
OWN_PROBE = tuple(kind.name for kind in KINDS if kind.own_probe)
LOOKS = tuple(kind.name for kind in KINDS if kind.look)
PROBED = tuple(kind.name for kind in KINDS if kind.bottom_half or kind.counted or kind.step)

_SITES = tuple(kind for kind in KINDS if kind.site)
EVENT_OF_SITE = {kind.site: kind.name for kind in _SITES}
ARMED = tuple(kind.site for kind in sorted(_SITES, key=lambda kind: kind.arm))
DISARMED = tuple(kind.site for kind in sorted(_SITES, key=lambda kind: kind.disarm))
