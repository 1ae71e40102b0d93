"""What the latest records say, for a live display: rates, latencies, durations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtrace.record.ebpf.rings import Slots


@dataclass(frozen=True, slots=True)
class Busy:
    """One bottom half of the sample: the part of its runs, and nanoseconds.

    ``wait`` is from its schedule to its run, ``took`` from its run to its return; each p50 and
    p99, None when the sample has no pair.
    """

    name: int
    share: float
    wait: tuple[float, float] | None
    took: tuple[float, float] | None


def busiest(sample: Slots, run_ip: int, return_ip: int, enqueue_ips: list[int]) -> list[Busy]:
    """The bottom halves of a sample by the number of their runs; ``name`` is a pointer."""
    sample = sample[np.argsort(sample["time_ns"], kind="stable")]
    run = sample["ip"] == np.uint32(run_ip)
    took = _follows(sample, run, sample["ip"] == np.uint32(return_ip), ("stack", "tid"))
    enqueued = np.isin(sample["ip"], np.array(enqueue_ips, np.uint32))
    # Of several schedules of one that is pending (BH_PENDING and still BH_SCHEDULED) the first
    # counts; after a cancel it is in its list, but what comes then is another one.
    wait = _follows(sample, enqueued & (sample["flags"] & 3 != 3), run, ("bh",))
    found = []
    names, counts = np.unique(sample["name"][run], return_counts=True)
    for name, count in sorted(zip(names, counts, strict=True), key=lambda pair: -pair[1]):
        own = sample["name"] == name
        found.append(
            Busy(int(name), count / run.sum(), _percentiles(wait[own]), _percentiles(took[own]))
        )
    return found


def _follows(
    sample: Slots, first: npt.NDArray[np.bool_], then: npt.NDArray[np.bool_], key: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """At each ``first``, the time until the next ``then`` of the same key, else NaN."""
    result = np.full(len(sample), np.nan)
    rows = np.flatnonzero(first | then)
    part = sample[rows]
    order = np.lexsort((np.arange(len(part)), *(part[field] for field in key)))
    ordered, at = part[order], rows[order]
    if len(order) > 1:
        same = np.logical_and.reduce([ordered[f][1:] == ordered[f][:-1] for f in key])
        pair = np.flatnonzero(same & first[at[:-1]] & then[at[1:]])
        elapsed = ordered["time_ns"][pair + 1] - ordered["time_ns"][pair]
        result[at[pair]] = elapsed.astype(np.float64)
    return result


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, (50, 99))
    return float(low), float(high)
