"""Since when things are as looks show them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Since:
    """Remembers of each thing since when every look has shown it in one and the same state.

    Between two looks it may have been otherwise: that it was so in both is all that is known.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Hashable, int]] = {}

    def saw(self, shown: Mapping[Thing, Hashable], now_ns: int) -> dict[Thing, int]:
        """For how long, in nanoseconds, each thing has been seen so; what a look does not show is
        forgotten.

        Args:
            shown: the state of each thing.
        """
        before, self._known = self._known, {}
        for_ns = {}
        for thing, state in shown.items():
            known = before.get(thing)
            now = self._known[thing] = known if known and known[0] == state else (state, now_ns)
            for_ns[thing] = now_ns - now[1]
        return for_ns
