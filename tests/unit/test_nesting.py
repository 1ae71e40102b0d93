"""Stretches that cross are left out, wherever a recording is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qtrace.export.nesting import LAST, Nesting

# Of one of two threads, when it begins, and how long it is.
STRETCHES = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 30), st.integers(0, 12)), max_size=14
)


def crossing(stretches: list[tuple[int, int, int]]) -> set[int]:
    """By brackets, one at a time: what ends has to be what began last."""
    moments = []
    for row, (thread, begin, length) in enumerate(stretches):
        if length:
            moments += [(begin, 1, -length, row, thread), (begin + length, 0, length, row, thread)]
    found: set[int] = set()
    stacks: dict[int, list[int]] = {1: [], 2: []}
    for _time, is_open, _length, row, thread in sorted(moments):
        if is_open:
            stacks[thread].append(row)
        elif (last := stacks[thread].pop()) != row:
            found |= {last, row}
    return found


@given(STRETCHES, st.sets(st.integers(1, 45)))
def test_it_is_the_same_in_any_parts(stretches: list[tuple[int, int, int]], cuts: set[int]) -> None:
    stretches = sorted(stretches, key=lambda one: one[1])
    thread, begin, length = np.array(stretches, np.int64).reshape(-1, 3).T
    row = np.arange(len(stretches))
    nesting, since = Nesting(), 0
    for until in [*sorted(cuts), LAST]:
        own = (begin > since) & (begin <= until)
        nesting.add(thread[own], begin[own], (begin + length)[own], row[own], until)
        since = until
    assert set(nesting.crossing().tolist()) == crossing(stretches)
