"""`qtrace report`: what stands in the page, and how it meets bad input.

A real browser opens it in tests/pictures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtrace.analysis import open_traces
from qtrace.analysis.report import judge_opened
from qtrace.export import html, report_data
from qtrace.export.drawing import drawing_of
from tests.unit.called import Call, calling
from tests.unit.event_rows import (
    CALLBACK,
    NAME,
    attach,
    detach,
    lost,
    recording,
    run,
    run_on_vcpu,
    schedule,
    write,
)

HOSTILE = "</script><script>alert(1)</script><!--\u202e\x1b[31m&\"'" + "n" * 10_000


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling("report", monkeypatch, capsys)


class Page(HTMLParser):
    """Its scripts, its style, its policy, and every attribute that could fetch or run something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.data = ""
        self.style = ""
        self.policy = ""
        self.loading: list[tuple[str, str | None]] = []
        self._where = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self._where = "data" if found.get("type") == "application/json" else tag
        if self._where == "script":
            self.scripts.append("")
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])
        self.loading += [
            (name, value) for name, value in attrs
            if name in ("src", "href", "style", "srcset") or name.startswith("on")
        ]  # fmt: skip

    def handle_endtag(self, tag: str) -> None:
        self._where = ""

    def handle_data(self, data: str) -> None:
        if self._where == "data":
            self.data += data
        elif self._where == "script":
            self.scripts[-1] += data
        elif self._where == "style":
            self.style += data


def data_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(path).data)
    return found


def column(packed: dict[str, Any], name: str) -> list[float]:
    raw, at = zlib.decompress(base64.b64decode(packed["data"])), 0
    for one, kind in packed["columns"]:
        values = np.frombuffer(raw, f"<{kind}", packed["length"], at)
        if one == name:
            return list(values.tolist())
        at += values.nbytes
    raise KeyError(name)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """One save on a vCPU thread, while two events were lost."""
    path = tmp_path / "trace.csv"
    recording(path, schedule(1_000), run_on_vcpu(2_000), lost(5_000, 6_000, 2))
    return path


def test_what_was_not_seen_is_one_line(tmp_path: Path, report: Call) -> None:
    watched = [
        {"name": name, "callback": f"{CALLBACK + 16 * at:#x}", "call_sites": [], "context": "main"}
        for at, name in enumerate([NAME, "job_exit"])
    ]
    trace = write(tmp_path / "idle.csv", [attach(watched=watched), detach()])
    report(trace, "-o", tmp_path / "idle.html")
    (words,) = data_of(tmp_path / "idle.html")["words"]
    assert words == [
        "not-seen", f"{NAME} and job_exit were not scheduled while the recording ran"
    ]  # fmt: skip


def test_it_says_what_analyze_says(report: Call, trace: Path) -> None:
    output = trace.with_name("report.html")
    done = report(trace, "-o", output)
    assert (done.returncode, done.stderr) == (1, "")
    data = data_of(output)
    assert data["words"] == [
        ["vcpu-poll", f"{NAME} ran inside a vCPU thread's aio_poll() 1 time of 1 (QEMU issue 2111)"]
    ]
    (one,) = data["recordings"]
    finding = one["findings"]["shown"][0]
    assert (finding["what"], finding["rows"], finding["begin"]) == ("vcpu-poll", [3, 4], 999)
    assert one["losses"]["shown"][0]["name"] == "2 events lost"
    assert column(one["runs"], "wait") == [1_000]
    assert [one["names"][int(at)] for at in column(one["runs"], "name")] == [NAME]


def test_nothing_in_it_runs_or_loads_but_by_its_hash(report: Call, trace: Path) -> None:
    output = trace.with_name("report.html")
    report(trace, "-o", output)
    page = Page(output)
    assert page.loading == []
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in (*page.scripts, page.style)
    ]
    assert len(hashes) == 3
    policy = dict(part.split(" ", 1) for part in page.policy.split("; "))
    assert policy["default-src"] == "'none'"
    assert set(policy["script-src"].split()) | set(policy["style-src"].split()) == set(hashes)
    assert not re.search(r"unsafe|http", page.policy)
    assert "Copyright (c) 2022 Leon Sorokin" in output.read_text()


def test_names_of_the_target_stay_names(report: Call, tmp_path: Path) -> None:
    trace = tmp_path / "hostile.csv"
    names = {"name": HOSTILE, "thread": HOSTILE, "context": HOSTILE}
    recording(trace, schedule(10, **names), run(20, **names), watched=[
        {"name": HOSTILE, "call_sites": []}])  # fmt: skip
    output = tmp_path / "hostile.html"
    assert report(trace, "-o", output).returncode == 0
    text = output.read_text()
    assert "<script>alert" not in text
    assert not {"\u202e", "\x1b"} & set(text)
    assert len(Page(output).scripts) == 2
    (one,) = data_of(output)["recordings"]
    (name,) = one["names"]
    assert name.startswith("</script><script>alert(1)</script><!--\\")
    assert name.endswith("characters)")


@pytest.mark.parametrize("events", [[], [schedule(5)]])
def test_hardly_any_event_is_a_page_all_the_same(
    report: Call, tmp_path: Path, events: list[Any]
) -> None:
    trace = write(tmp_path / "small.csv", [attach(), *events])
    done = report(trace, "-o", tmp_path / "small.html")
    assert done.returncode == 4
    assert "it was cut off" in done.stderr
    data = data_of(tmp_path / "small.html")
    assert not data["complete"]
    assert any("cut off" in text for text in data["warnings"])


def test_recordings_of_several_targets_are_told_apart(report: Call, tmp_path: Path) -> None:
    for number in range(3):
        target = {"pid": number, "program": "qemu-system-x86_64", "build_id": f"{number:040}"}
        events = [schedule(10), run_on_vcpu(20) if number == 1 else run(20)]
        recording(tmp_path / f"{number}.csv", *events, target=target)
    assert report(tmp_path, "-o", tmp_path / "all.html").returncode == 1
    data = data_of(tmp_path / "all.html")
    assert data["targets"] == len(data["recordings"]) == 3
    # The worst first.
    assert data["recordings"][0]["path"].endswith("1.csv")
    assert [one["target"]["pid"] for one in data["traces"]] == ["0", "1", "2"]


def test_what_is_left_out_is_counted_and_the_findings_are_kept(tmp_path: Path) -> None:
    events = []
    for number in range(400):
        at = 1_000 + 100 * number
        late = number == 390
        events += [
            schedule(at, opaque=number),
            (run_on_vcpu if late else run)(at + 9 + 30 * late, opaque=number),
        ]
    recording(tmp_path / "long.csv", *events)
    opened = open_traces(tmp_path / "long.csv")
    judged = judge_opened(opened, lints=None)
    drawn = drawing_of(opened[0], judged)
    whole, part = (report_data.recording_data(drawn, most) for most in (400, 40))
    assert whole["left_out"] == {"runs": 0, "moments": 0, "of": 400}
    assert whole["windows"] is None
    assert part["left_out"]["runs"] == 400 - part["runs"]["length"]
    assert part["runs"]["length"] <= 40
    verdict = part["verdicts"].index("vcpu-poll")
    assert verdict in column(part["runs"], "verdict")
    unshown = np.frombuffer(zlib.decompress(base64.b64decode(part["unshown"])), "<u4")
    assert unshown.sum() == part["left_out"]["runs"]
    busy = [zlib.decompress(base64.b64decode(text)) for text in part["busy"]]
    assert len(busy) == len(part["threads"])


def test_a_page_has_5_mb_at_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events = []
    for number in range(3_000):
        at = 1_000 + 977 * number
        events += [schedule(at, opaque=number), run(at + number % 89, opaque=number)]
    recording(tmp_path / "long.csv", *events)
    opened = open_traces(tmp_path / "long.csv")
    judged = judge_opened(opened, lints=None)
    drawn = drawing_of(opened[0], judged)
    whole = html.page_of(judged, [drawn])
    monkeypatch.setattr(html, "LARGEST", len(whole) - 10_000)
    smaller = html.page_of(judged, [drawn])
    assert len(smaller) <= html.LARGEST
    assert b'"left_out":{"runs":0' in whole
    assert b'"left_out":{"runs":0' not in smaller


def test_an_output_that_exists_is_kept(report: Call, trace: Path) -> None:
    output = trace.with_name("old.html")
    output.write_text("old")
    done = report(trace, "-o", output)
    assert (done.returncode, output.read_text()) == (2, "old")
    assert report(trace, "-o", output, "--force").returncode == 1
    assert data_of(output)["verdict"] == "vcpu-poll"


def test_a_full_disk_is_one_error(report: Call, trace: Path) -> None:
    output = trace.with_name("full.html")
    output.symlink_to("/dev/full")
    done = report(trace, "-o", output)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"error: cannot write {output}: No space left on device",
        "remedy: free some space, or choose another file with -o",
    ]


def test_a_name_that_is_no_page_is_refused_before_a_trace_is_read(
    report: Call, tmp_path: Path
) -> None:
    done = report(tmp_path / "none.csv", "-o", tmp_path / "report.pdf")
    assert done.returncode == 3
    assert "does not end in .html" in done.stderr


def test_the_library_is_what_npm_has() -> None:
    """uPlot 1.6.32, the files dist/uPlot.iife.min.js and dist/uPlot.min.css of its package."""
    assets = Path(html.__file__).with_name("assets")
    wanted = {
        "uPlot-1.6.32.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    found = {name: hashlib.sha256((assets / name).read_bytes()).hexdigest() for name in wanted}
    assert found == wanted


def test_a_detached_recording_without_its_end_is_open(tmp_path: Path) -> None:
    trace = write(tmp_path / "open.csv", [
        attach(returns=[NAME]), schedule(1_000), run_on_vcpu(2_000),
        detach(9_000, until_ns=8_000)])  # fmt: skip
    opened = open_traces(trace)
    data = report_data.recording_data(drawing_of(opened[0], judge_opened(opened, lints=None)), 10)
    assert (column(data["runs"], "open"), column(data["runs"], "took")) == ([1], [6_000])
