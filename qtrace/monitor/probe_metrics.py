"""The metrics of what probes have seen: QMP commands, jobs, watched bottom halves, the probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

from qtrace.monitor.labels import OTHER, label, reasons
from qtrace.monitor.state import BottomHalfTimes, ProbeState, VmState
from qtrace.monitor.vm_steps import BOUNDS_NS
from qtrace.record.all_events.histogram import BOUNDS_NS as TIMES_BOUNDS_NS
from qtrace.record.all_events.histogram import Histogram


def of_probes(probes: ProbeState) -> Iterator[Metric]:
    """Of the probes themselves."""
    yield GaugeMetricFamily(
        "qtrace_probes_up", "1 while probes are read; 0: QEMUs are looked at only.",
        value=float(not probes.missing),
    )  # fmt: skip
    if probes.missing:
        info = InfoMetricFamily("qtrace_probes_missing", "Why there are no probes.")
        info.add_metric([], {"reason": label(probes.missing)})
        yield info
    yield CounterMetricFamily(
        "qtrace_probe_lost", "Hits of probes that nobody has seen.", value=probes.lost
    )
    yield CounterMetricFamily(
        "qtrace_programs_started", "qemu-img and the like that have started.",
        value=probes.programs,
    )  # fmt: skip
    about = "QEMUs that are looked at, but not probed."
    yield by_reason("qtrace_vms_unarmed", about, probes.unarmed)
    if probes.unsummed_hits is not None:
        about = "QEMUs whose bottom halves are not timed, although --stats asks for it."
        yield by_reason("qtrace_vms_untimed", about, probes.unsummed)
        yield CounterMetricFamily(
            "qtrace_bottom_half_lost", "Runs and waits of bottom halves that were not counted.",
            value=probes.unsummed_hits,
        )  # fmt: skip


def of_times(vms: Sequence[VmState], others: Sequence[VmState]) -> Iterator[Metric]:
    """How long bottom halves took. ``others`` have no labels of their own."""
    runs = HistogramMetricFamily(
        "qtrace_bottom_half_seconds", "How long bottom halves took.", labels=["vm", "bottom_half"]
    )
    waits = HistogramMetricFamily(
        "qtrace_bottom_half_wait_seconds", "How long they waited from schedule to run.",
        labels=["vm", "bottom_half"],
    )  # fmt: skip
    together: dict[str, BottomHalfTimes] = {}
    for one in others:
        for name, times in one.times.items():
            together[name] = together[name] + times if name in together else times
    told = [(one.vm, one.times) for one in vms]
    for vm, by_name in [*told, (OTHER, together)]:
        for name, times in by_name.items():
            _add(runs, vm, name, times.runs)
            if times.waits is not None:
                _add(waits, vm, name, times.waits)
    yield from (runs, waits)


def _add(family: HistogramMetricFamily, vm: str, name: str, times: Histogram) -> None:
    bounds = [str(bound / 1e9) for bound in TIMES_BOUNDS_NS] + ["+Inf"]
    below = accumulate(times.buckets)
    family.add_metric([vm, name], list(zip(bounds, below, strict=True)), times.total_ns / 1e9)


def by_reason(name: str, about: str, counts: Mapping[str, int]) -> Metric:
    """How many QEMUs something is the matter with, by what."""
    metric = GaugeMetricFamily(name, about, labels=["reason"])
    for reason, count in reasons(counts).items():
        metric.add_metric([reason], count)
    return metric


def of_hits(vms: Sequence[VmState]) -> Iterator[Metric]:
    """Of what each QEMU has passed."""
    armed = GaugeMetricFamily("qtrace_vm_probes", "Places that are probed now.", labels=["vm"])
    since = GaugeMetricFamily(
        "qtrace_vm_armed_seconds", "From its start until it was probed, where that was seen.",
        labels=["vm"],
    )  # fmt: skip
    times = HistogramMetricFamily(
        "qtrace_qmp_command_seconds", "How long QMP commands took.", labels=["vm"]
    )
    for one in vms:
        vm = one.vm
        armed.add_metric([vm], one.probes)
        if one.armed_s:
            since.add_metric([vm], one.armed_s)
        if one.steps.buckets:
            below, buckets = 0, []
            bounds = [str(bound / 1e9) for bound in BOUNDS_NS] + ["+Inf"]
            for bound, count in zip(bounds, one.steps.buckets, strict=True):
                below += count
                buckets.append((bound, below))
            times.add_metric([vm], buckets, sum(one.steps.seconds.values()))
    yield from (armed, since, times)
    for name, text, key, values, is_counter in _OF_STEPS:
        family = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
            name, text, labels=["vm", key]
        )
        for one in vms:
            for value, number in values(one).items():
                family.add_metric([one.vm, label(value)], number)
        yield family
    ran = CounterMetricFamily(
        "qtrace_bottom_half_runs", "How many times watched bottom halves ran, and who ran them.",
        labels=["vm", "bottom_half", "role"],
    )  # fmt: skip
    for one in vms:
        for name, roles in one.ran.items():
            for role, count in roles.items():
                ran.add_metric([one.vm, name, role], count)
    yield ran


# Name, help, the label beside vm, its values, whether it only grows.
_OF_STEPS: tuple[tuple[str, str, str, Callable[[VmState], Mapping[str, float]], bool], ...] = (
    ("qtrace_qmp_commands", "QMP commands that were answered.", "command",
     lambda one: one.steps.commands, True),
    ("qtrace_qmp_seconds", "How long they took together.", "command",
     lambda one: one.steps.seconds, True),
    ("qtrace_qmp_waiting_seconds", "How long the oldest unanswered one has waited.", "command",
     lambda one: one.steps.waiting, False),
    ("qtrace_jobs", "Jobs that there are.", "status", lambda one: one.steps.jobs, False),
    ("qtrace_job_changes", "How many times a job has come to have a status.", "status",
     lambda one: one.steps.changes, True),
)  # fmt: skip
