"""What Perfetto's own trace processor reads in an exported sample is what the recording holds.

The other side is counted from the rows and the frames of the analysis, not by what exports them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import Trace
from qtrace.analysis.arrays import filled
from qtrace.analysis.report import judge_opened
from qtrace.export.drawing import drawing_of
from qtrace.export.perfetto import export
from tests.pictures.trace_processor import ask
from tests.unit.event_rows import NAME, attach, detach, lost, run, run_on_vcpu, schedule, write

# All samples are exported and read before the first test.
pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

SAMPLES = Path(__file__).parents[2] / "analysis/samples"
FILES = sorted(path for path in SAMPLES.iterdir() if path.suffix in (".csv", ".parquet"))
HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m" + "n" * 10_000
QUERIES = {
    "errors": "select name from stats where severity in ('error', 'data_loss') and value > 0",
    "clocks": "select clock_name, clock_value from clock_snapshot",
    "threads": "select tid, name from thread where tid != 0",
    "runs": """
        select extract_arg(s.arg_set_id, 'debug.row') as row, s.ts, s.dur, t.tid, s.name,
            s.category, extract_arg(s.arg_set_id, 'debug.verdict') as verdict,
            extract_arg(s.arg_set_id, 'debug.stack') as stack,
            extract_arg(s.arg_set_id, 'debug.opaque') as opaque,
            extract_arg(s.arg_set_id, 'debug.waited_ns') as waited, p.name as above,
            extract_arg(p.arg_set_id, 'debug.row') as above_row,
            extract_arg(g.arg_set_id, 'debug.row') as beyond_row
        from slice s join thread_track k on s.track_id = k.id join thread t using (utid)
            left join slice p on s.parent_id = p.id left join slice g on p.parent_id = g.id
        where extract_arg(s.arg_set_id, 'debug.verdict') is not null""",
    "polls": "select count(*) as n from slice where name = 'aio_poll'",
    "marks": """
        select s.name, s.ts, s.dur, extract_arg(s.arg_set_id, 'debug.row') as row, t.tid
        from slice s left join thread_track k on s.track_id = k.id left join thread t using (utid)
        where s.name glob '* *' and extract_arg(s.arg_set_id, 'debug.row') is not null
            and extract_arg(s.arg_set_id, 'debug.verdict') is null""",
    "flows": """
        select extract_arg(o.arg_set_id, 'debug.row') as source,
            extract_arg(i.arg_set_id, 'debug.row') as sink
        from flow f join slice o on f.slice_out = o.id join slice i on f.slice_in = i.id""",
    "counters": """
        select t.name, c.ts, c.value from counter c join track t on c.track_id = t.id
        order by c.id""",
    "spans": """
        select t.name as track, s.name, s.ts, s.dur, s.arg_set_id as args from slice s
        join track t on s.track_id = t.id where t.name in
            ('findings', 'lost events', 'looks at threads in the way', 'QMP commands', 'jobs')""",
    "rows": """
        select s.arg_set_id as args, a.int_value as row from slice s join args a using (arg_set_id)
        where a.flat_key = 'debug.rows'""",
    "unended": "select count(*) as n from slice where dur < 0",
}  # fmt: skip
Answers = dict[str, list[dict[str, Any]]]


def made_up(folder: Path) -> list[Path]:
    """Recordings that no sample is like."""
    two = [schedule(10), run(20), lost(22, 30, 7), schedule(40), run_on_vcpu(55)]
    names = {"name": HOSTILE, "thread": HOSTILE, "context": HOSTILE}
    return [
        write(folder / "empty.csv", [attach()]),
        write(folder / "one.csv", [attach(), schedule(10), detach()]),
        write(folder / "lossy.csv", [attach(), *two, detach()]),
        write(folder / "cut.csv", [attach(), *two]),
        write(folder / "hostile.csv", [attach(), schedule(9, **names), run(20, **names), detach()]),
        write(
            folder / "same-time.csv",
            [attach(), *(schedule(10, opaque=n) for n in (1, 2)), run(10, opaque=2),
             run(10, opaque=1), detach()],
        ),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trace, Any, Answers]]:
    """Of every sample the recording, what was judged, and what the trace processor reads."""
    folder = tmp_path_factory.mktemp("perfetto")
    files = [*FILES, *made_up(folder)]
    traces: dict[str, tuple[Trace, Any]] = {}
    exported = {}
    for path in files:
        trace = Trace(path)
        report = judge_opened([trace], lints=None)
        export(drawing_of(trace, report), folder / f"{path.name}.pftrace")
        traces[path.name] = trace, report
        exported[path.name] = (folder / f"{path.name}.pftrace").read_bytes()
    found = ask(exported, *QUERIES.values())
    return {
        name: (*traces[name], dict(zip(QUERIES, tables, strict=True)))
        for name, tables in found.items()
    }


NAMES = [path.name for path in FILES]
MADE_UP = ["empty.csv", "one.csv", "lossy.csv", "cut.csv", "hostile.csv", "same-time.csv"]


@pytest.mark.parametrize("name", [*NAMES, *MADE_UP])
def test_it_reads_what_was_recorded(answers: Any, name: str) -> None:
    trace, report, seen = answers[name]
    events = trace.events
    assert not seen["errors"]
    assert not seen["unended"][0]["n"]
    tids = set(events["tid"]) - {0}
    assert {one["tid"] for one in seen["threads"]} - {trace.header["target"]["pid"]} == tids - {
        trace.header["target"]["pid"]
    }
    check_runs(trace, seen)
    check_moments(trace, seen)
    check_flows(trace, seen)
    check_counters(trace, seen)
    check_spans(trace, report, seen)


def check_runs(trace: Trace, seen: Answers) -> None:
    """Each row of a run is a slice from its time to its end, inside the run around it."""
    runs, instances = trace.runs, trace.instances
    end = filled(runs["end_ns"])
    found = {one["row"]: one for one in seen["runs"]}
    assert len(found) == len(seen["runs"]) == len(runs)
    begin, end = runs["time_ns"].tolist(), end.tolist()
    contexts, stacks = (runs[column].astype(str).tolist() for column in ("context", "stack"))
    rows = runs["row"].tolist()
    open_runs: dict[int, list[int]] = {}
    verdicts = dict(zip(filled(instances["ended_row"]), instances["verdict"], strict=True))
    polls = 0
    for at, (row, tid, name, opaque) in enumerate(
        zip(rows, runs["tid"], runs["name"], runs["opaque"], strict=True)
    ):
        one = found[row]
        assert (one["ts"], one["tid"], one["name"]) == (begin[at], tid, name)
        assert one["verdict"] == verdicts[row]
        assert one["category"] == contexts[at]
        assert one["stack"].split(" <- ")[::-1] == stacks[at].split(";")
        assert int(one["opaque"] or 0) & (1 << 64) - 1 == opaque
        if end[at] >= 0:
            assert one["dur"] == end[at] - begin[at]
        above = open_runs.setdefault(tid, [])
        while above and end[above[-1]] <= begin[at]:
            above.pop()
        nested = one["above"] == "aio_poll"
        polls += nested
        around = one["beyond_row"] if nested else one["above_row"]
        # Of two moments at one time the later one stands below the other.
        assert not one["dur"] or around == (rows[above[-1]] if above else None)
        if one["dur"]:
            above.append(at)
        if one["verdict"] == "vcpu-poll":
            assert nested or not one["dur"]
        if one["verdict"] in ("main-loop", "iothread"):
            assert not nested
    assert seen["polls"] == [{"n": polls}]


def check_moments(trace: Trace, seen: Answers) -> None:
    kinds = ("schedule", "co_schedule", "cancel", "delete", "call")
    events = trace.events[trace.events["event"].isin(kinds)]
    # One that ran before it was noted had been scheduled by then.
    own = trace.instances.dropna(subset=["scheduled_row"])
    earlier = dict(zip(own["scheduled_row"], own["scheduled_ns"], strict=True))
    wanted = {
        (row, min(time, earlier.get(row, time)), tid or None, f"{kind} {name}")
        for row, time, tid, kind, name in events[["row", "time_ns", "tid", "event", "name"]]
        .astype(object).to_numpy().tolist()
    }  # fmt: skip
    found = Counter(
        (one["row"], one["ts"], one["tid"], one["name"].replace("schedule again", "schedule", 1))
        for one in seen["marks"]
    )
    assert set(found) == wanted
    assert max(found.values(), default=1) == 1
    assert not any(one["dur"] for one in seen["marks"])


def check_flows(trace: Trace, seen: Answers) -> None:
    """From each schedule to its run; where the run may be another's, from none."""
    instances = trace.instances
    lost_in_between = instances["reason"] == "events were lost during its life"
    paired = (instances["end"] == "run") & instances["scheduled_row"].notna() & ~lost_in_between
    own = instances.loc[paired, ["scheduled_row", "ended_row"]].astype(int)
    wanted = Counter(map(tuple, own.to_numpy().tolist()))
    assert Counter((one["source"], one["sink"]) for one in seen["flows"]) == wanted


def check_counters(trace: Trace, seen: Answers) -> None:
    """How many are pending in each context, counted one schedule and one end at a time."""
    instances = trace.instances
    moments: dict[str, list[tuple[int, int]]] = {}
    columns = ["context", "ctx", "scheduled_ns", "ended_ns", "end", "reason"]
    for context, ctx, scheduled, ended, how, reason in (
        instances[columns].astype(object).to_numpy().tolist()
    ):
        doubtful = how == "unseen" or (not how and reason == "events were lost during its life")
        if isinstance(scheduled, int) and not doubtful:
            key = context or (f"{ctx:#x}" if ctx else "unknown context")
            own = moments.setdefault(f"pending in {key}", [])
            own.append((scheduled, 1))
            if how:
                own.append((max(ended, scheduled), -1))
    for name, own in moments.items():
        counts: dict[int, int] = {}
        total = 0
        for time, step in sorted(own):
            total += step
            counts[time] = total
        assert [
            (one["ts"], one["value"]) for one in seen["counters"] if one["name"] == name
        ] == list(counts.items())
    assert {one["name"] for one in seen["counters"]} <= set(moments)


def check_spans(trace: Trace, report: Any, seen: Answers) -> None:
    spans: dict[str, list[dict[str, Any]]] = {}
    rows: dict[int, list[int]] = {}
    for one in seen["rows"]:
        rows.setdefault(one["args"], []).append(one["row"])
    for one in seen["spans"]:
        spans.setdefault(one["track"], []).append(one)
    assert len(spans.get("QMP commands", [])) == len(trace.commands)
    assert len(spans.get("jobs", [])) == len(trace.jobs)
    told = [(one["evidence"]["rows"], "stuck") for one in report["stuck"]]
    for half in report["bottom_halves"]:
        told += [(one["evidence"]["rows"], one["verdict"]) for one in half["findings"]]
    verdicts = {what for _rows, what in told}
    for lint in report["lints"]:
        if lint["lint"] not in verdicts:
            told += [(one["evidence"]["rows"], lint["lint"]) for one in lint["findings"]]
    found = [
        (rows.get(one["args"], []), one["name"].split(":")[0]) for one in spans.get("findings", [])
    ]
    assert sorted(found) == sorted(told)
    losses = sum(len(one) for one in (trace.losses, trace.file.step_losses, trace.file.qmp_losses))
    assert len(spans.get("lost events", [])) == losses
    looks = set(trace.events.loc[trace.events["event"] == "blocked", "row"])
    drawn = {
        row for one in spans.get("looks at threads in the way", []) for row in rows[one["args"]]
    }
    assert len(drawn - looks) == sum(one.over_ns is not None for one in trace.away)
    assert bool(drawn) == bool(looks or trace.held)


def test_names_of_the_target_are_texts(answers: Any) -> None:
    """Escaped as in the file, and whole."""
    _trace, _report, seen = answers["hostile.csv"]
    (name,) = {one["name"] for one in seen["runs"]}
    assert name.startswith("<script>alert(1)</script>\\xe2\\x80\\xae\\x1b[31m")
    assert name.count("n") >= 10_000


def test_its_clock_leads_to_the_time_of_day(answers: Any) -> None:
    _trace, _report, seen = answers["one.csv"]
    clocks = {one["clock_name"]: one["clock_value"] for one in seen["clocks"]}
    assert clocks["MONOTONIC"] == 1
    assert clocks["REALTIME"] == 1769860800 * 10**9


def test_a_lossy_stretch_is_drawn(answers: Any) -> None:
    _trace, _report, seen = answers["lossy.csv"]
    (loss,) = [one for one in seen["spans"] if one["track"] == "lost events"]
    assert (loss["name"], loss["ts"], loss["dur"]) == ("7 events lost", 22, 8)
    assert NAME in {one["name"] for one in seen["runs"]}


def test_the_samples_are_all_here() -> None:
    """The one above would pass without any."""
    assert len(FILES) >= 20
    assert os.path.commonpath(FILES) == str(SAMPLES)
