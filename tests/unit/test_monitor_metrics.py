"""What ``qtrace monitor`` tells Prometheus, of states of a host."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from importlib import resources

import pytest

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.metrics_core import Metric  # noqa: E402

from qtrace.monitor.labels import MOST_REASONS, reasons, unique_label  # noqa: E402
from qtrace.monitor.metrics import MOST_TIMED, MOST_VMS, HostCollector  # noqa: E402
from qtrace.monitor.state import (  # noqa: E402
    BottomHalfTimes,
    HostState,
    ProbeState,
    StepCounts,
    StuckLoop,
    VmState,
)
from qtrace.monitor.vm_sums import NAMES  # noqa: E402
from qtrace.record.all_events.histogram import Histogram  # noqa: E402

SEEN = VmState("vm1", "qemu-system-x86_64", "7.2", "ab", looks=3, seen_at=990.0)
HUNG = replace(
    SEEN,
    stuck=(StuckLoop("main", "main", 12.5), StuckLoop("iothread", "iothread:i", 3.0)),
    findings={"stuck": 2},
    in_flight={"nbd": 2},
    stuck_requests={"nbd": 1},
)
PROBED = replace(
    SEEN,
    probes=20,
    armed_s=0.03,
    steps=StepCounts({"stop": 3}, {"stop": 1.5}, [1, 0, 1, 1, 0, 0], {"stop": 7.0}, {"running": 1}),
    ran={"snapshot_save_job_bh": {"vcpu": 2, "main": 9}},
    found={"vcpu-poll": 2},
    times={"job_exit": BottomHalfTimes(Histogram.of([1] * 32, 9), None)},
)


def host(*vms: VmState) -> HostState:
    return HostState(vms, 1, {}, 0.5, 1000.0)


def metrics(state: HostState | None) -> dict[str, Metric]:
    return {metric.name: metric for metric in HostCollector(lambda: state).collect()}


def value(state: HostState, name: str, **labels: str) -> float:
    (found,) = (s.value for s in metrics(state)[name].samples if s.labels == labels)
    return float(found)


def test_a_hang_has_its_length_its_loop_and_its_requests() -> None:
    state = host(HUNG)
    assert value(state, "qtrace_main_loop_stuck_seconds", vm="vm1") == 12.5
    loop = {"vm": "vm1", "role": "iothread", "context": "iothread:i"}
    assert value(state, "qtrace_loop_stuck_seconds", **loop) == 3.0
    assert value(state, "qtrace_findings", vm="vm1", kind="stuck") == 2
    assert value(state, "qtrace_requests_stuck", vm="vm1", driver="nbd") == 1
    assert value(state, "qtrace_requests_in_flight", vm="vm1", driver="nbd") == 2
    assert value(state, "qtrace_look_age_seconds", vm="vm1") == 10.0


def test_zero_is_told_of_a_loop_that_was_seen_to_come_back_alone() -> None:
    name = "qtrace_main_loop_stuck_seconds"
    assert value(host(SEEN), name, vm="vm1") == 0
    for unknown in (
        replace(SEEN, looks=0), replace(SEEN, unreadable_s=7.0), replace(SEEN, inconclusive=True)
    ):  # fmt: skip
        assert math.isnan(value(host(unknown), name, vm="vm1"))


def test_a_guest_that_was_never_looked_at_has_an_age_too() -> None:
    """Of one whose first look does not come the rule for its age is to fire."""
    never = replace(SEEN, looks=0, seen_at=0.0, found_at=700.0)
    assert value(host(never), "qtrace_look_age_seconds", vm="vm1") == 300.0


def test_of_a_guest_that_is_not_answered_for_nothing_old_is_told() -> None:
    state = host(replace(HUNG, unreadable_s=7.0))
    assert not metrics(state)["qtrace_loop_stuck_seconds"].samples
    assert value(state, "qtrace_vm_unreadable_seconds", vm="vm1") == 7.0


def test_a_thousand_guests_are_no_thousand_labels_and_the_longest_hang_is_kept() -> None:
    vms = [replace(SEEN, vm=f"vm{n}") for n in range(1000)]
    vms[999] = replace(HUNG, vm="vm999")
    vms[998] = replace(SEEN, vm="vm998", looks=5)
    family = metrics(host(*vms))["qtrace_main_loop_stuck_seconds"]
    assert len(family.samples) == MOST_VMS + 1
    assert family.samples[-1].labels == {"vm": "other"}
    assert family.samples[-1].value == 12.5


def test_bottom_halves_of_a_thousand_guests_are_few_labels_and_nothing_is_left_out() -> None:
    one = BottomHalfTimes(Histogram.of([1] * 32, 5 * 10**9), Histogram.of([0, 2] + [0] * 30, 3000))
    vms = [replace(SEEN, vm=f"vm{n}", times=dict.fromkeys([*NAMES, "other"], one))
           for n in range(1000)]  # fmt: skip
    state = replace(host(*vms), probes=ProbeState(unsummed_hits=7))
    found = metrics(state)
    family = found["qtrace_bottom_half_seconds"]
    kinds = {(s.labels["vm"], s.labels["bottom_half"]) for s in family.samples}
    assert len(kinds) == (MOST_TIMED + 1) * (len(NAMES) + 1)
    for metric, count in (
        ("qtrace_bottom_half_seconds", 32),
        ("qtrace_bottom_half_wait_seconds", 2),
    ):
        for vm, times in (("vm1", 1), ("other", 1000 - MOST_TIMED)):
            labels = {"vm": vm, "bottom_half": "job_exit"}
            counted = [s for s in found[metric].samples if labels.items() <= s.labels.items()]
            (ends,) = (s.value for s in counted if s.labels.get("le") == "+Inf")
            assert ends == count * times
            bounds = [float(s.labels["le"]) for s in counted if "le" in s.labels]
            assert bounds == sorted(bounds)
            assert bounds[:2] == [1.024e-06, 2.048e-06]
    total = sum(s.value for s in family.samples if s.name.endswith("_sum"))
    assert total == 5 * 1000 * (len(NAMES) + 1)
    assert value(state, "qtrace_bottom_half_lost") == 7


def test_hostile_names_are_short_printable_labels_and_each_another_one() -> None:
    hostile = "a\n\x1b[2J\u202e" + "x" * 10_000
    taken: list[str] = []
    # Names that differ where a label does not; the last are what others are told under.
    for name in (hostile, hostile + "y", "a?", "a\n", "a\r", "a?~2", "other", "a\udc80"):
        taken.append(unique_label(name, taken))
    assert len(set(taken)) == len(taken)
    assert all(name.isprintable() and len(name) < 130 for name in taken)
    assert "other" not in taken
    family = metrics(host(*(replace(SEEN, vm=name) for name in taken)))["qtrace_looks"]
    assert [sample.labels["vm"] for sample in family.samples] == taken


def test_why_guests_are_refused_has_no_pid_and_few_words() -> None:
    many = {f"process {n} cannot be read": 1 for n in range(1000)}
    words = {f"{'a' * n} is why": 1 for n in range(1, 31)}
    found = reasons({**many, **words})
    assert found["process N cannot be read"] == 1000
    assert len(found) == MOST_REASONS + 1
    assert sum(found.values()) == 1030


def test_two_loops_whose_contexts_are_not_known_are_one_sample() -> None:
    loops = (StuckLoop("iothread", "?", 3.0), StuckLoop("iothread", "?", 5.0))
    family = metrics(host(replace(HUNG, stuck=loops)))["qtrace_loop_stuck_seconds"]
    assert [sample.value for sample in family.samples] == [5.0]


def test_before_the_first_look_only_that_is_told() -> None:
    (age,) = metrics(None).values()
    assert math.isnan(age.samples[0].value)


def test_a_state_is_the_same_behind_its_line() -> None:
    for state in (host(HUNG, SEEN), replace(host(PROBED), probes=ProbeState("", {"no": 1}, 2, 3))):
        assert HostState.load(state.dump()) == state
        # And again: what is kept of the first time is no fact of it.
        assert HostState.load(state.dump()) == state


def test_what_was_told_once_is_told_anew_when_it_has_changed() -> None:
    before = host(HUNG, PROBED)
    assert HostState.load(before.dump()).vms[0].looks == 3
    after = replace(before, vms=(replace(before.vms[0], looks=4), before.vms[1]))
    assert HostState.load(after.dump()) == after


def test_of_a_probed_guest_commands_jobs_and_runs_are_told() -> None:
    state = replace(host(PROBED), probes=ProbeState(lost=4), ended={"SIGSEGV": 1})
    assert value(state, "qtrace_probe_lost") == 4
    assert value(state, "qtrace_vms_ended", how="SIGSEGV") == 1
    assert value(state, "qtrace_qmp_waiting_seconds", vm="vm1", command="stop") == 7.0
    assert value(state, "qtrace_jobs", vm="vm1", status="running") == 1
    run = {"vm": "vm1", "bottom_half": "snapshot_save_job_bh", "role": "vcpu"}
    assert value(state, "qtrace_bottom_half_runs", **run) == 2
    times = metrics(state)["qtrace_qmp_command_seconds"].samples
    assert [s.value for s in times if s.name.endswith("_bucket")] == [1, 1, 2, 3, 3, 3]
    assert value(state, "qtrace_found", vm="vm1", kind="vcpu-poll") == 2


def test_without_probes_it_is_told_why() -> None:
    state = replace(host(SEEN), probes=ProbeState("no right to"))
    assert value(state, "qtrace_probes_up") == 0
    (sample,) = metrics(state)["qtrace_probes_missing"].samples
    assert sample.labels == {"reason": "no right to"}


@pytest.mark.parametrize(
    ("asset", "queries"),
    [("alerts.yml", r"expr: (.*)"), ("dashboard.json", r'"(?:expr|query)": "(.*)"')],
)
def test_each_rule_and_each_query_is_about_metrics_that_there_are(asset: str, queries: str) -> None:
    text = (resources.files("qtrace.monitor") / "assets" / asset).read_text()
    named = set(re.findall(r"\bqtrace_\w+", "\n".join(re.findall(queries, text))))
    assert named
    state = replace(host(HUNG), probes=ProbeState())
    assert named <= {sample for one in metrics(state).values() for sample in names(one)}


def names(metric: Metric) -> set[str]:
    ends = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}
    return {metric.name + end for end in ends.get(metric.type, ("",))}
