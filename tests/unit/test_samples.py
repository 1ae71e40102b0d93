"""Every verdict on the labelled recordings of real QEMUs (made by scripts/samples.py)."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import judge, read_trace

SAMPLES = Path(__file__).parents[2] / "analysis" / "samples"
LABELS: dict[str, dict[str, Any]] = tomllib.loads((SAMPLES / "labels.toml").read_text())


@pytest.mark.parametrize("name", LABELS)
def test_a_recording_is_judged_as_its_label_says(name: str) -> None:
    label, report = LABELS[name], judge(SAMPLES / name)
    found = {half["name"]: half["verdicts"] for half in report["bottom_halves"]}
    assert found == label["verdicts"]
    assert (report["complete"], report["lost_events"], report["warnings"]) == (True, 0, [])
    (trace,) = report["traces"]
    assert (trace["exit"] or {}).get("signal") == label.get("killed_by")


def test_every_recording_has_a_label() -> None:
    """Those of the lints have theirs in their own test."""
    kept = {path.name for path in SAMPLES.iterdir() if path.suffix in (".csv", ".parquet")}
    assert set(LABELS) == {name for name in kept if not name.startswith("lint-")}


@pytest.mark.parametrize("name", LABELS)
def test_a_recording_says_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    trace = read_trace(SAMPLES / name)
    assert trace.header["target"]["exe"].startswith(("/usr/bin/", "/opt/qemu-"))
    text = trace.frame.astype(str).to_csv()
    for path in ("/home/", "/root/", "/tmp/"):
        assert path not in text
    host = socket.gethostname()
    # A host may be called like a word of QEMU's.
    assert len(host) < 5 or host not in text
