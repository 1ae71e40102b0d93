"""The metrics of a host's QEMUs, by prometheus-client: no pid or tid is a label."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qtrace.monitor.happenings import CRASHES, FOREIGN
from qtrace.monitor.labels import OTHER, label
from qtrace.monitor.probe_metrics import by_reason, of_hits, of_probes, of_times
from qtrace.monitor.state import HostState, VmState

# A host has at most so many guests with labels of their own; the others are `other`.
MOST_VMS = 500
# And so many of those whose bottom halves are timed: each has some hundred samples.
MOST_TIMED = 50


class HostCollector(Collector):
    """Asked at each scrape: of what is known then."""

    def __init__(self, known: Callable[[], HostState | None]) -> None:
        self._known = known

    def collect(self) -> Iterator[Metric]:
        state = self._known()
        age = GaugeMetricFamily(
            "qtrace_monitor_age_seconds", "How old what is told here is; NaN before the first look."
        )
        age.add_metric([], time.monotonic() - state.at if state else float("nan"))
        yield age
        if state is not None:
            yield from _of_host(state)


def _of_host(state: HostState) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "qtrace_monitor_cpu_seconds", "Processor time used by the monitor.", value=state.cpu_s
    )
    yield CounterMetricFamily(
        "qtrace_log_lines_dropped", "Lines of the monitor's that nobody read.",
        value=state.lines_dropped,
    )  # fmt: skip
    yield GaugeMetricFamily(
        "qtrace_vms", "QEMUs with a main loop that are watched.", value=len(state.vms)
    )
    yield GaugeMetricFamily(
        "qtrace_other_programs", "qemu-img and the like, which are counted only.",
        value=state.others,
    )  # fmt: skip
    yield by_reason("qtrace_vms_refused", "QEMUs that cannot be looked into.", state.refused)
    ended = CounterMetricFamily("qtrace_vms_ended", "QEMUs that have ended.", labels=["how"])
    for how, count in {**_NO_CRASHES, **state.ended}.items():
        ended.add_metric([how], count)
    yield ended
    info = InfoMetricFamily("qtrace_vm", "What a guest runs on.", labels=["vm"])
    for one in state.vms[:MOST_VMS]:
        facts = {"program": one.program, "version": one.version, "build_id": one.build_id}
        info.add_metric([one.vm], {key: label(value) for key, value in facts.items()})
    yield info
    for name, text, value, is_counter in _OF_VM:
        family = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
            name, text, labels=["vm"]
        )
        for one in state.vms[:MOST_VMS]:
            family.add_metric([one.vm], value(one, state))
        rest = [value(one, state) for one in state.vms[MOST_VMS:]]
        if rest:
            # Counts add up; of times the longest is told, and what is not known of one of them.
            worst = max(rest, key=lambda number: (math.isnan(number), number))
            family.add_metric([OTHER], sum(rest) if is_counter else worst)
        yield family
    loops = GaugeMetricFamily(
        "qtrace_loop_stuck_seconds", "For how long at least a loop has not come back.",
        labels=["vm", "role", "context"],
    )  # fmt: skip
    kinds = GaugeMetricFamily(
        "qtrace_findings", "What is proven to be wrong now.", labels=["vm", "kind"]
    )
    found = CounterMetricFamily(
        "qtrace_found", "Findings that have come up so far.", labels=["vm", "kind"]
    )
    flying = GaugeMetricFamily(
        "qtrace_requests_in_flight", "Block requests in flight, by driver.", labels=["vm", "driver"]
    )
    stuck = GaugeMetricFamily(
        "qtrace_requests_stuck", "Block requests that are stuck, by driver.",
        labels=["vm", "driver"],
    )  # fmt: skip
    for one in state.vms[:MOST_VMS]:
        for kind, count in {**_NOT_FOUND, **one.found}.items():
            found.add_metric([one.vm, kind], count)
        if not one.known:
            continue
        longest: dict[tuple[str, str], float] = {}
        for loop in one.stuck:
            # Of two whose contexts are not known, the longer one's.
            key = loop.role, label(loop.context)
            longest[key] = max(loop.seconds, longest.get(key, 0.0))
        for (role, context), seconds in longest.items():
            loops.add_metric([one.vm, role, context], seconds)
        for family, counts in ((kinds, one.findings), (flying, one.in_flight),
                               (stuck, one.stuck_requests)):  # fmt: skip
            for word, count in counts.items():
                family.add_metric([one.vm, label(word)], count)
    yield from (loops, kinds, found, flying, stuck)
    if state.probes is not None:
        yield from of_probes(state.probes)
        yield from of_hits(state.vms[:MOST_VMS])
        timed = [one for one in state.vms if one.times]
        yield from of_times(timed[:MOST_TIMED], timed[MOST_TIMED:])


UNKNOWN = math.nan
# What a rule is about is there from the beginning: Prometheus sees no increase in the first value.
_NO_CRASHES = dict.fromkeys((number.name for number in CRASHES), 0)
_NOT_FOUND = dict.fromkeys(FOREIGN.values(), 0)


def _stuck(one: VmState, _host: HostState) -> float:
    seconds = [loop.seconds for loop in one.stuck if loop.role == "main"]
    return max(seconds) if seconds else UNKNOWN if one.inconclusive or not one.known else 0.0


def _bql_wait(one: VmState, _host: HostState) -> float:
    return one.bql_wait_s if one.known else UNKNOWN


def _held(one: VmState, _host: HostState) -> float:
    return float(bool(one.held)) if one.known else UNKNOWN


def _age(one: VmState, host: HostState) -> float:
    return host.at - (one.seen_at or one.found_at)


# Name, help, value (NaN where it is not known), whether it only grows.
_OF_VM: tuple[tuple[str, str, Callable[[VmState, HostState], float], bool], ...] = (
    (
        "qtrace_main_loop_stuck_seconds",
        "For how long at least the main loop has not come back; 0 while it does, NaN: not known.",
        _stuck,
        False,
    ),
    (
        "qtrace_bql_wait_seconds",
        "For how long at least somebody has been waiting for the BQL now.",
        _bql_wait,
        False,
    ),
    (
        "qtrace_vm_unreadable_seconds",
        "For how long the kernel has not answered about it; 0 while it does.",
        lambda one, _host: one.unreadable_s,
        False,
    ),
    (
        "qtrace_vm_held",
        "1 while none of it can run: a signal, a tracer, its cgroup.",
        _held,
        False,
    ),
    (
        "qtrace_vm_inconclusive",
        "1 where the last look could not tell whether something is wrong.",
        lambda one, _host: float(one.inconclusive),
        False,
    ),
    (
        "qtrace_look_age_seconds",
        "How old the last look at it is; before the first, for how long it has been known.",
        _age,
        False,
    ),
    ("qtrace_looks", "Looks at it.", lambda one, _host: float(one.looks), True),
    (
        "qtrace_look_seconds",
        "How long looks at it took together.",
        lambda one, _host: one.looking_s,
        True,
    ),
)
