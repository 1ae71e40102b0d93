"""Record one command with `--all` and print what that took as JSON.

A process of its own, which imports nothing but the recorder: its memory is the recorder's.
``python -m benchmarks.one_recording FOLDER COMMAND...``
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from benchmarks.qemu_img import seconds
from qtrace.record.launch import launch
from qtrace.record.recording_options import RecordingOptions


def record(folder: Path, command: list[str]) -> dict[str, float]:
    """Events and how many were lost; seconds; megabytes, at most, while recording and after."""
    raw, output = folder / "recording.raw", folder / "output"
    fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    recording, child = launch(
        command, RecordingOptions(raw, force=True, everything=True), output_fd=fd
    )
    began = time.process_time()
    with recording:
        while not recording.ended:
            recording.poll(0.1)
        recording.stop("target exited")
    child.wait()
    cpu, rss_mb = time.process_time() - began, _peak_mb()
    assert recording.everything is not None
    counts = recording.everything.counts

    from qtrace.trace.convert import convert

    clock = time.monotonic()
    convert(raw, folder / "recording.parquet", force=True)
    return {
        "events": counts.produced,
        "lost": counts.lost,
        "took": seconds(output.read_text()),
        "cpu": cpu,
        "rss_mb": rss_mb,
        "convert": time.monotonic() - clock,
        "rss_converted_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(record(Path(sys.argv[1]), sys.argv[2:])))
