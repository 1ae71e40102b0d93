"""`qtrace export`: the structure of what it writes, and how it meets bad input.

Perfetto's own trace processor reads the samples in tests/pictures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as Protobuf
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

from tests.unit.called import Call, calling
from tests.unit.event_rows import (
    NAME,
    attach,
    detach,
    lost,
    recording,
    run_on_vcpu,
    schedule,
    write,
)


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling("export", monkeypatch, capsys)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """One save on a vCPU thread, while two events were lost."""
    path = tmp_path / "trace.csv"
    recording(path, schedule(1_000), run_on_vcpu(2_000), lost(5_000, 6_000, 2))
    return path


def read(path: Path) -> Any:
    found = Protobuf()
    found.ParseFromString(path.read_bytes())
    return found.packet


def test_every_thing_has_its_track_and_its_packet(export: Call, trace: Path) -> None:
    output = trace.with_name("trace.perfetto-trace")
    done = export(trace, "-o", output, "--format", "json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["runs"], counts["schedules"], counts["flows"]) == (1, 1, 1)
    assert counts["bytes"] == output.stat().st_size
    packets = read(output)
    tracks = {one.track_descriptor.uuid: one.track_descriptor for one in packets}
    names = [one.name or one.thread.thread_name or one.process.process_name
             for one in tracks.values() if one.uuid]  # fmt: skip
    assert {name for name in names if "qemu-system-x86_64 7.2" not in name} == {
        "findings", "lost events", "context main", "pending in main", "CPU 0/TCG (vcpu)",
        "qemu-system-x86 (main)",
    }  # fmt: skip
    kinds = Counter(one.track_event.type for one in packets if one.HasField("track_event"))
    # No return of the run was recorded: it is a moment, as its schedule is.
    assert kinds[TrackEvent.TYPE_INSTANT] == 2
    assert kinds[TrackEvent.TYPE_COUNTER] == 2
    assert kinds[TrackEvent.TYPE_SLICE_BEGIN] == kinds[TrackEvent.TYPE_SLICE_END]
    (source,) = [list(one.track_event.flow_ids) for one in packets if one.track_event.flow_ids]
    (sink,) = [
        list(one.track_event.terminating_flow_ids)
        for one in packets if one.track_event.terminating_flow_ids
    ]  # fmt: skip
    assert source == sink
    assert all(one.track_event.track_uuid in tracks for one in packets)


def test_a_finding_names_its_rows(export: Call, trace: Path) -> None:
    output = trace.with_name("trace.pftrace")
    assert export(trace, "-o", output).returncode == 0
    found = {
        one.track_event.name: one.track_event.debug_annotations
        for one in read(output) if one.track_event.name.startswith("vcpu-poll")
    }  # fmt: skip
    (rows,) = [one for one in found[f"vcpu-poll: {NAME}"] if one.name == "rows"]
    assert [one.uint_value for one in rows.array_values] == [3, 4]


def test_the_same_trace_gives_the_same_bytes(export: Call, trace: Path) -> None:
    first, second = trace.with_name("1.pftrace"), trace.with_name("2.pftrace")
    for output in (first, second):
        assert export(trace, "-o", output).returncode == 0
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("events", [[], [schedule(5)]])
def test_hardly_any_event_is_a_trace_all_the_same(
    export: Call, tmp_path: Path, events: list[Any]
) -> None:
    trace = write(tmp_path / "small.csv", [attach(), *events])
    output = tmp_path / "small.pftrace"
    done = export(trace, "-o", output)
    assert done.returncode == 0
    assert "it was cut off" in done.stderr
    assert len(read(output))


def test_an_output_that_exists_is_kept(export: Call, trace: Path) -> None:
    output = trace.with_name("old.pftrace")
    output.write_text("old")
    done = export(trace, "-o", output)
    assert (done.returncode, output.read_text()) == (2, "old")
    assert "--force" in done.stderr
    assert export(trace, "-o", output, "--force").returncode == 0
    assert len(read(output))


def test_a_full_disk_is_one_error(export: Call, trace: Path) -> None:
    output = trace.with_name("full.pftrace")
    output.symlink_to("/dev/full")
    done = export(trace, "-o", output)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"error: cannot write {output}: No space left on device",
        "remedy: free some space, or choose another file with -o",
    ]


def test_what_cannot_be_written_is_refused_before_it_is_read(export: Call, tmp_path: Path) -> None:
    done = export(tmp_path / "none.csv", "-o", tmp_path / "trace.json")
    assert done.returncode == 3
    assert "does not end in .perfetto-trace" in done.stderr
    done = export(tmp_path / "none.csv", "-o", tmp_path / "no" / "a.pftrace")
    assert "create it first" in done.stderr


def test_without_the_library_it_says_what_to_install(trace: Path) -> None:
    code = (
        "import sys; sys.modules['perfetto'] = None; sys.argv = ['qtrace', 'export',"
        f" {str(trace)!r}, '-o', {str(trace.with_name('x.pftrace'))!r}];"
        " from qtrace.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: Perfetto's library is not installed", "remedy: pip install 'qtrace[perfetto]'"
    ]  # fmt: skip


def test_a_recording_that_ended_in_good_order_has_no_open_slice(
    export: Call, tmp_path: Path
) -> None:
    trace = write(
        tmp_path / "open.csv",
        [attach(returns=[NAME]), schedule(1_000), run_on_vcpu(2_000),
         detach(9_000, until_ns=8_000)],
    )  # fmt: skip
    output = tmp_path / "open.pftrace"
    assert export(trace, "-o", output).returncode == 0
    packets = [one for one in read(output) if one.HasField("track_event")]
    kinds = Counter(one.track_event.type for one in packets)
    assert kinds[TrackEvent.TYPE_SLICE_BEGIN] == kinds[TrackEvent.TYPE_SLICE_END]
    assert 8_000 in {one.timestamp for one in packets}
