"""The first look of a recording: only what no probe saw scheduled was pending before it."""

from __future__ import annotations

from typing import NoReturn

import pytest

from qtrace.qemu.aio.model import SCHEDULED, BottomHalf, Look
from qtrace.record.stall import Stalls
from qtrace.sites.scan import BottomHalf as Watched
from qtrace.trace.schema import Event

CB, CTX, OPAQUE = 0x1000, 0x2000, 0x3000
SCHEDULE = Event(5, "schedule", callback=CB, ctx=CTX, opaque=OPAQUE)
RUN = Event(9, "run", callback=CB, ctx=CTX, opaque=OPAQUE)


class OneLook:
    """A look that is over."""

    def look(self, *, details: bool) -> Look:
        half = BottomHalf(0x4000, CTX, "watched_bh", CB, OPAQUE, SCHEDULED)
        return Look(7, bottom_halves=(half,))


@pytest.mark.parametrize(
    ("events", "pending_before"),
    [([], 1), ([SCHEDULE], 0), ([RUN], 1), ([SCHEDULE, RUN], 0)],
)
def test_what_ran_between_the_look_and_the_drain_is_not_taken_for_older(
    events: list[Event], pending_before: int
) -> None:
    watched = Watched("watched_bh", CB, "", (), ())
    stalls = Stalls(OneLook, [watched], bias=0, stall_after_ns=1 << 60)  # type: ignore[arg-type]
    rows = stalls.begin(lambda: events)
    assert sum("pending_already" in row.detail for row in rows) == pending_before
    assert [row for row in rows if "pending_already" not in row.detail] == events


def never() -> NoReturn:
    pytest.fail("it was looked at")


def test_a_program_that_was_just_started_is_not_looked_at_before_it_can_have_stalled() -> None:
    watched = Watched("watched_bh", CB, "", (), ())
    stalls = Stalls(never, [watched], bias=0, stall_after_ns=1 << 60, from_start=True)
    stalls.saw([SCHEDULE])
    assert stalls.check() == []
