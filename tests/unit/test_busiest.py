"""The waits of the live table, from a sample of records."""

from __future__ import annotations

import numpy as np
import pytest

from qtrace.record.all_events.all_program import slot_type
from qtrace.record.all_events.busiest import busiest

RUN, RETURN, ENQUEUE, CANCEL = 1, 2, 3, 4
PENDING, SCHEDULED = 1, 2


@pytest.mark.parametrize(
    ("events", "wait"),
    [
        # A second schedule of one that is pending inserts nothing.
        ([(10, ENQUEUE, 0), (20, ENQUEUE, PENDING | SCHEDULED), (40, RUN, 0)], 30),
        # After a cancel it is in its list still, and another instance.
        ([(10, ENQUEUE, 0), (20, CANCEL, 0), (30, ENQUEUE, PENDING), (40, RUN, 0)], 10),
        ([(10, ENQUEUE, 0), (20, CANCEL, 0), (30, ENQUEUE, 0), (40, RUN, 0)], 10),
        ([(40, RUN, 0)], None),
    ],
)
def test_a_wait_begins_with_the_schedule_that_made_it_pending(
    events: list[tuple[int, int, int]], wait: int | None
) -> None:
    sample = np.zeros(len(events), slot_type())
    sample["bh"] = sample["name"] = 7
    for record, (time_ns, ip, flags) in zip(sample, events, strict=True):
        record["time_ns"], record["ip"], record["flags"] = time_ns, ip, flags
    (one,) = busiest(sample, RUN, RETURN, [ENQUEUE])
    assert one.wait == (None if wait is None else (wait, wait))
