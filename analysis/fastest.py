"""How fast something happened at its fastest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def fastest(times: Numbers, window_ns: int) -> tuple[int, int, float]:
    """The busiest window of sorted times: where it begins, how many it holds, and per second."""
    if not len(times):
        return 0, 0, 0.0
    held = times.searchsorted(times + window_ns, side="left") - np.arange(len(times))
    at = int(held.argmax())
    count = int(held[at])
    return at, count, count * 1e9 / window_ns
