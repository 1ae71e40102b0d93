"""Of the records of ``--all`` those with a new combination of values are found, each once."""

from __future__ import annotations

import numpy as np

from qtrace.record.all_events.all_program import slot_type
from qtrace.record.all_events.unseen import FreshRecords


def test_the_first_record_of_each_combination_is_told_in_whichever_block_it_comes() -> None:
    generator = np.random.default_rng(2111)
    slots = np.zeros(20_000, slot_type())
    # More combinations than there are places of the table that are hit without a collision.
    for field, count in (("ctx", 3), ("name", 40), ("callback", 40), ("tid", 9)):
        slots[field] = generator.integers(0, count, len(slots))
    slots["caller"][:, 1] = generator.integers(0, 2, len(slots))
    slots["time_ns"] = np.arange(len(slots))
    fresh = FreshRecords(slots.dtype, ("tid", "ctx", "name", "callback", "caller"))
    found = [fresh.of(block)["time_ns"] for block in np.array_split(slots, 7)]
    words = np.stack(
        [slots[field] for field in ("tid", "ctx", "name", "callback")] + [slots["caller"][:, 1]], 1
    )
    _distinct, first = np.unique(words, axis=0, return_index=True)
    assert np.concatenate(found).tolist() == sorted(first.tolist())
    assert not len(fresh.of(slots))
