"""Where times lie: the middle, the tail, the worst."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spread(values: npt.NDArray[np.float64]) -> dict[str, int] | None:
    """``p50_ns``, ``p99_ns`` and ``max_ns`` of nanoseconds, NaN left out; None for none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    p50, p99 = np.percentile(known, (50, 99))
    return {"p50_ns": int(p50), "p99_ns": int(p99), "max_ns": int(known.max())}
