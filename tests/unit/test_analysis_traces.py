"""The frames of one recording and of several, and what they need to be made."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from qtrace.analysis import Trace, compare, judge, open_traces
from qtrace.analysis.lints import LINTS
from qtrace.errors import TraceUnreadable
from tests.unit.event_rows import NAME, VCPU_TID, recording, run, run_on_vcpu, schedule

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "analysis/samples"
FRAMES = (
    "events", "instances", "runs", "commands", "jobs", "contexts", "threads", "findings",
)  # fmt: skip


def two(folder: Path) -> Path:
    recording(folder / "a.csv", schedule(10), run(20))
    recording(folder / "b.csv", schedule(10), run_on_vcpu(25), schedule(30))
    return folder


def test_frames_of_several_traces_stand_one_after_the_other(tmp_path: Path) -> None:
    traces = open_traces(two(tmp_path))
    assert [len(trace.instances) for trace in traces] == [1, 2]
    names = [str(tmp_path / name) for name in ("a.csv", "b.csv", "b.csv")]
    assert traces.instances["trace"].astype(str).tolist() == names
    assert traces.instances["verdict"].tolist() == ["main-loop", "vcpu-poll", "pending"]
    assert traces.instances["wait_ns"].tolist()[:2] == [10, 15]
    assert traces.threads["ran"].tolist() == [1, 0, 1]
    assert traces.contexts[["instances", "ran", "pending"]].to_numpy().tolist() == [
        [1, 1, 0],
        [2, 1, 1],
    ]
    assert len(open_traces([tmp_path / "a.csv", str(tmp_path / "*.csv")])) == 3
    assert traces[1:].findings["tid"].tolist() == [VCPU_TID]


def test_a_column_has_one_type_however_many_traces(tmp_path: Path) -> None:
    traces = open_traces(two(tmp_path))
    for name in FRAMES:
        whole = getattr(traces, name)
        assert whole.columns[0] == "trace"
        for one in traces:
            part = getattr(one, name)
            for column in part:
                if isinstance(part[column].dtype, pd.CategoricalDtype):
                    assert isinstance(whole[column].dtype, pd.CategoricalDtype), (name, column)
                else:
                    assert whole[column].dtype == part[column].dtype, (name, column)


def test_a_finding_leads_back_to_its_rows(tmp_path: Path) -> None:
    one = open_traces(two(tmp_path))[1]
    (finding,) = one.findings.to_dict("records")
    rows = one.evidence([finding["scheduled_row"], finding["ended_row"]])
    assert rows["event"].tolist() == ["schedule", "run"]
    assert rows["name"].tolist() == [NAME, NAME]
    assert one.instances.loc[finding["instance"], "verdict"] == finding["verdict"] == "vcpu-poll"


def test_findings_of_several_traces_lead_to_their_instances(tmp_path: Path) -> None:
    traces = open_traces([two(tmp_path), tmp_path / "b.csv"])
    assert traces.findings["instance"].tolist() == [1, 3]
    for finding in traces.findings.to_dict("records"):
        own = traces.instances.loc[finding["instance"]]
        assert own[["trace", "verdict", "ended_ns"]].tolist() == [
            finding["trace"], finding["verdict"], finding["time_ns"],
        ]  # fmt: skip
        assert traces.explain(finding["instance"]).splitlines()[0].endswith(finding["trace"])


def test_runs_of_several_traces_lead_to_their_instances_and_to_each_other(tmp_path: Path) -> None:
    outer, own = run(20), {"name": "inner", "callback": 0x77, "opaque": 0x78}
    inner = run(40, bh=0x9A, **own)
    ends = [replace(inner, time_ns=50, event="return"), replace(outer, time_ns=60, event="return")]
    for name in ("a.csv", "b.csv"):
        recording(tmp_path / name, schedule(10), outer, schedule(30, **own), inner, *ends)
    traces = open_traces(tmp_path)
    assert traces.runs["name"].tolist() == [NAME, "inner"] * 2
    assert traces.runs["outer"].fillna(-1).tolist() == [-1, 0, -1, 2]
    assert traces.runs["parent"].fillna(-1).tolist() == [-1, 0, -1, 2]
    for one in traces.runs.to_dict("records"):
        own = traces.instances.iloc[one["instance"]]
        assert own[["trace", "name", "ended_ns"]].tolist() == [
            one["trace"], one["name"], one["time_ns"],
        ]  # fmt: skip


def test_frames_of_several_traces_are_kept(tmp_path: Path) -> None:
    traces = open_traces(two(tmp_path))
    for name in FRAMES:
        assert getattr(traces, name) is getattr(traces, name)


def test_commands_and_jobs_are_frames_with_their_wall_clock(tmp_path: Path) -> None:
    """Their JSON need not be compact: who converts a trace may write it as he likes."""
    trace = open_traces(SAMPLES / "late-reply-stock-10.0-kvm.parquet")[0]
    saves = trace.commands[trace.commands["name"] == "snapshot-save"]
    assert len(saves) == 3
    steps = ["taken_ns", "begun_ns", "ended_ns", "replied_ns"]
    assert (saves[steps].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    for step, column in (("begin", "begun"), ("reply", "replied")):
        rows = trace.evidence(saves[f"{column}_row"])
        assert rows["detail"].str.contains(f'"step":"{step}"', regex=False).all()
        assert rows["time_ns"].tolist() == saves[f"{column}_ns"].tolist()
    began = pd.Timestamp(trace.header["wall_clock"])
    since = saves["taken_ns"] - trace.events["time_ns"].iloc[0]
    assert (saves["wall_clock"] - began).astype("int64").tolist() == since.tolist()
    assert trace.jobs["name"].tolist()[::2] == ["save0", "save1", "save2"]
    assert (trace.jobs["created_ns"] < trace.jobs["concluded_ns"]).all()
    assert trace.jobs["status"].tolist() == ["null"] * 6
    spaced = trace.events.assign(detail=trace.events["detail"].astype(str).map(wide))
    spaced["detail"] = spaced["detail"].astype("category")
    again = Trace(replace(trace.file, frame=spaced))
    pd.testing.assert_frame_equal(again.commands, trace.commands)
    pd.testing.assert_frame_equal(again.jobs, trace.jobs)
    assert again.instances["verdict"].tolist() == trace.instances["verdict"].tolist()


def wide(text: str) -> str:
    """JSON as others write it."""
    return json.dumps(json.loads(text), indent=1) if text else ""


def test_a_recording_without_a_wall_clock_has_none(tmp_path: Path) -> None:
    one = Trace(recording(tmp_path / "t.csv", run_on_vcpu(25), wall_clock="unknown"))
    assert len(one.findings) == 1
    assert one.findings["wall_clock"].isna().all()
    assert str(one.findings["wall_clock"].dtype) == "datetime64[ns, UTC]"


def test_a_frame_of_a_stack_stands_where_the_column_says() -> None:
    one = open_traces(SAMPLES / "vcpu-poll-7.2-tcg.csv")[0]
    found = one.instances.loc[one.findings["instance"]]
    for stack, place, device in found[["stack", "deciding_frame", "device_frame"]].to_numpy(object):
        frames = stack.split(";")
        assert frames[place].startswith("aio_poll+")
        assert frames[device].startswith("memory_region_dispatch_write+")
        assert frames[-1].startswith(NAME)


def test_the_pictures_are_there_when_they_are_asked_for() -> None:
    code = (
        "import sys, qtrace.analysis as analysis\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert callable(analysis.pictures.swim_lanes)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_open_is_judged_and_compared_as_it_is(tmp_path: Path) -> None:
    """Nothing is read or computed again."""
    traces = open_traces(two(tmp_path))
    first = traces[0].instances
    assert open_traces(traces) is traces
    assert judge(traces) == judge(tmp_path)
    assert judge(traces[1]) == judge(tmp_path / "b.csv")
    assert compare(traces[0], traces[1]) == compare(tmp_path / "a.csv", tmp_path / "b.csv")
    assert traces[0].instances is first


def test_traces_show_what_they_are_and_read_nothing_for_it(tmp_path: Path) -> None:
    names = [tmp_path / f"{letter}.csv" for letter in "abcde"]
    assert repr(open_traces(names)) == "<Traces: 5: a.csv, b.csv, c.csv, d.csv, ...>"
    assert repr(open_traces(names)[0]) == f"<Trace {names[0]}>"


def test_an_instance_is_explained_by_its_number(tmp_path: Path) -> None:
    traces = open_traces(two(tmp_path))
    assert traces.explain(1) == traces[1].explain(0)
    assert "vcpu-poll" in traces.explain(1)
    for wrong in (3, -1):
        with pytest.raises(IndexError, match="no instance"):
            traces.explain(wrong)


def test_files_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    recording(tmp_path / "a.csv", schedule(10), run(20))
    (tmp_path / "b.csv").write_text("no trace")
    traces = open_traces(tmp_path)
    assert len(traces[0].events) == 4
    with pytest.raises(TraceUnreadable, match=r"b\.csv"):
        _ = traces[1].events


def test_the_library_needs_no_tracer_and_no_terminal() -> None:
    code = (
        "import sys\n"
        "for name in ('bcc', 'gdb', 'click', 'rich', 'capstone', 'elftools', 'pygdbmi', 'qemu',\n"
        "             'psutil', 'matplotlib', 'qtrace.cli', 'qtrace.record', 'qtrace.process'):\n"
        "    sys.modules[name] = None\n"
        "from qtrace.analysis import judge, open_traces\n"
        "traces = open_traces(sys.argv[1:])\n"
        "for frame in ('events', 'instances', 'contexts', 'threads', 'findings'):\n"
        "    assert len(getattr(traces, frame)), frame\n"
        "answers = [result.result for result in traces.lint()]\n"
        "print(traces.explain(0), judge(sys.argv[1:])['verdict'], len(answers))\n"
    )
    samples = [SAMPLES / "vcpu-poll-10.0-kvm.parquet", SAMPLES / "crash-7.2-tcg.csv"]
    done = subprocess.run([sys.executable, "-c", code, *samples], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split()[-2:] == ["vcpu-poll", str(2 * len(LINTS))]


def test_the_library_prints_nothing_and_loops_over_no_rows() -> None:
    for path in (ROOT / "analysis").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
                assert name not in ("print", "iterrows", "itertuples"), (path, node.lineno)


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (code,) = text.split("```python\n")[1:]
    (tmp_path / "recordings").mkdir()
    for name in ("stock-7.2-tcg.parquet", "all-save-7.2-tcg.parquet"):
        (tmp_path / "recordings" / name).symlink_to(SAMPLES / name)
    done = subprocess.run(
        [sys.executable, "-c", code.split("```")[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "snapshot_save_job_bh" in done.stdout
    assert "the reply to snapshot-save came" in done.stdout
