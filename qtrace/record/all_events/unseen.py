"""What was not seen before in the records of `--all`: of millions some hundred are of interest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qtrace.record.ebpf.rings import Slots

BITS = 16
# Multiply-add hashing; odd, so that no bit of a word is lost.
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93,
     0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53],
    np.uint64,
)  # fmt: skip
WORD = 8


class FreshRecords:
    """Tells the records that have a new combination of values, at some nanoseconds per record.

    A record's words are hashed to one number; a direct-mapped table has the latest, a set has all.

    Args:
        slot: the records' dtype, of whole words.
        fields: those that count; what shares a word with one of them does, too.
    """

    def __init__(self, slot: np.dtype[np.void], fields: Sequence[str]) -> None:
        layout: Any = slot.fields
        words: set[int] = set()
        for field in fields:
            kind, offset = layout[field][:2]
            words |= {*range(offset // WORD, (offset + kind.itemsize - 1) // WORD + 1)}
        self._words = list(zip(sorted(words), MULTIPLIERS[: len(words)], strict=True))
        self._table = np.zeros(1 << BITS, np.uint64)
        self._seen: set[int] = set()

    def of(self, slots: Slots) -> Slots:
        """The first record of each combination that is new."""
        words = slots.view(np.uint64).reshape(len(slots), -1)
        keys = np.zeros(len(slots), np.uint64)
        for word, multiplier in self._words:
            keys += words[:, word] * multiplier
        places = keys >> np.uint64(64 - BITS)
        missed = np.flatnonzero(self._table[places] != keys)
        if not len(missed):
            return slots[:0]
        distinct, first = np.unique(keys[missed], return_index=True)
        self._table[distinct >> np.uint64(64 - BITS)] = distinct
        new = [key not in self._seen for key in distinct.tolist()]
        self._seen.update(distinct.tolist())
        return slots[np.sort(missed[first[new]])]


class FreshValues:
    """Remembers values; 0 is none."""

    def __init__(self) -> None:
        self._seen: set[int] = {0}

    def of(self, column: npt.NDArray[Any]) -> list[int]:
        """The new ones, each once."""
        new = [value for value in dict.fromkeys(column.tolist()) if value not in self._seen]
        self._seen.update(new)
        return new
