"""The frames of one recording and of several, and what they need to be made."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from qtrace.analysis import judge, open_traces
from qtrace.analysis.compare import compare
from qtrace.analysis.lints import LINTS
from qtrace.errors import TraceUnreadable
from tests.unit.event_rows import NAME, VCPU_TID, recording, run, run_on_vcpu, schedule

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "analysis/samples"
FRAMES = ("events", "instances", "contexts", "threads", "findings")


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
    assert repr(open_traces(names)[0]) == f"<AnalysedTrace {names[0]}>"


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
        "             'psutil', 'matplotlib', 'qtrace.cli', 'qtrace.recorder', 'qtrace.target'):\n"
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
