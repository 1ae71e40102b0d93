"""How fast something happened at its fastest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def fastest(times: Numbers, window_ns: int) -> tuple[int, int]:
    """The busiest window of sorted times: where it begins, and how many it holds."""
    if not len(times):
        return 0, 0
    held = times.searchsorted(times + window_ns, side="left") - np.arange(len(times))
    at = int(held.argmax())
    return at, int(held[at])
