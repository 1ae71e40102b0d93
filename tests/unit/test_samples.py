"""Every verdict and every lint on the labelled recordings of real QEMUs (scripts/samples)."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import Trace, exit_status, judge, open_traces
from qtrace.analysis.comparison import compare, compare_status
from qtrace.analysis.lints import LINTS, find
from qtrace.analysis.report import judge_opened
from qtrace.errors import ExitStatus

SAMPLES = Path(__file__).parents[2] / "analysis" / "samples"
LABELS: dict[str, dict[str, Any]] = tomllib.loads((SAMPLES / "labels.toml").read_text())
CONTROLS = [name for name, label in LABELS.items() if label.get("control")]


@cache
def sample(name: str) -> Trace:
    return open_traces(SAMPLES / name)[0]


@cache
def report(name: str) -> dict[str, Any]:
    return judge_opened([sample(name)], lints=None)


@pytest.mark.parametrize("name", LABELS)
def test_a_recording_is_judged_as_its_label_says(name: str) -> None:
    label, found = LABELS[name], report(name)
    verdicts = {half["name"]: half["verdicts"] for half in found["bottom_halves"]}
    assert verdicts == label["verdicts"]
    assert len(found["stuck"]) == label.get("stuck", 0)
    assert (found["verdict"] == "stuck") == bool(found["stuck"])
    assert (found["complete"], found["lost_events"], found["warnings"]) == (True, 0, [])
    (trace,) = found["traces"]
    assert (trace["exit"] or {}).get("signal") == label.get("killed_by")


@pytest.mark.parametrize("name", LABELS)
def test_every_lint_says_of_a_recording_what_its_label_says(name: str) -> None:
    expected = {
        lint: "inconclusive" if find(lint).needs == "--all" and not sample(name).every else "none"
        for lint in LINTS
    }
    said: dict[str, list[str]] = LABELS[name].get("lints", {})
    expected |= {lint: result for result, lints in said.items() for lint in lints}
    results = {result["lint"]: result for result in report(name)["lints"]}
    assert {lint: result["result"] for lint, result in results.items()} == expected
    for lint, result in results.items():
        assert bool(result["findings"]) == (expected[lint] == "finding")
        assert all(finding["evidence"]["rows"] for finding in result["findings"])


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_have_no_finding_of_any_kind(name: str) -> None:
    assert exit_status(report(name) | {"lints": []}) == ExitStatus.OK
    assert not [lint["lint"] for lint in report(name)["lints"] if lint["findings"]]


def test_each_lint_that_needs_no_lower_limit_is_found_in_a_recording() -> None:
    """The others: tests/live/test_storms.py, and in shorter samples test_lint_samples."""
    found = {
        lint for label in LABELS.values() for lint in label.get("lints", {}).get("finding", ())
    }
    assert set(LINTS) - found == {"storm", "busy-loop", "lost-schedule"}


@pytest.mark.parametrize("before", ["stock-7.2-tcg.parquet", "held-7.2-tcg.parquet"])
def test_the_fix_is_told_apart_from_luck(before: str) -> None:
    """Beside the guest as it is, and beside the one that gdb holds up as it does for the fix."""
    found = compare(SAMPLES / before, SAMPLES / "rerouted-7.2-tcg.parquet")
    (half,) = found["bottom_halves"]
    race = next(row for row in half["verdicts"] if row["verdict"] == "vcpu-poll")
    assert (race["after"], race["before"][1]) == ([0, 3000], 3000)
    assert race["bursts"] > 3
    assert race["chance"] < 1e-9
    assert "surely rarer" in race["sentence"]
    assert compare_status(found) == ExitStatus.OK
    assert kinds(found["gone"]) == {"vcpu-poll", "wrong-thread", "vm-stop"}
    back = compare(SAMPLES / "rerouted-7.2-tcg.parquet", SAMPLES / before)
    assert compare_status(back) == ExitStatus.FINDING
    assert kinds(back["came"]) == kinds(found["gone"])


def test_the_fix_makes_the_reply_prompt_and_others_wait_all_the_same() -> None:
    found = compare(
        SAMPLES / "all-save-7.2-tcg.parquet", SAMPLES / "all-save-rerouted-7.2-tcg.parquet"
    )
    assert kinds(found["gone"]) == {"late-reply", "starvation"}
    assert kinds(found["came"]) == {"head-of-line"}
    save = next(row for row in found["times"] if row["name"] == "snapshot_save_job_bh")
    assert save["context"] == "main > iohandler"


def kinds(findings: Iterable[dict[str, Any]]) -> set[str]:
    return {finding.get("verdict") or finding["lint"] for finding in findings}


@pytest.mark.parametrize("event", ["schedule", "run", "call", "return"])
def test_a_row_that_was_cut_out_is_missed(tmp_path: Path, event: str) -> None:
    """By the counts of the detach row: never a shorter trace without a word."""
    name = "vcpu-poll-7.2-tcg.csv"
    lines = (SAMPLES / name).read_text().splitlines(keepends=True)
    own = [line for line in lines if f",{event}," in line]
    (tmp_path / name).write_text("".join(line for line in lines if line != own[-1]), newline="")
    found = judge(tmp_path / name)
    assert (found["complete"], found["lost_events"]) == (True, 1)
    assert "1 rows of" in found["warnings"][0]
    assert exit_status(found) == (
        ExitStatus.FINDING if event == "return" else ExitStatus.INCONCLUSIVE
    )


def test_every_recording_has_a_label() -> None:
    kept = {path.name for path in SAMPLES.iterdir() if path.suffix in (".csv", ".parquet")}
    assert set(LABELS) == kept


def test_the_recordings_stay_small() -> None:
    sizes = [path.stat().st_size for path in SAMPLES.iterdir()]
    assert max(sizes) < 300_000
    assert sum(sizes) < 1_500_000


def test_all_recordings_together_are_judged_like_one() -> None:
    """What `qtrace analyze` does with a folder."""
    together = judge(SAMPLES, lints=None)
    assert together["verdict"] == "stuck"
    assert len(together["traces"]) == len(LABELS)
    assert len(together["lints"]) == len(LABELS) * len(LINTS)


@pytest.mark.parametrize("name", LABELS)
def test_a_recording_says_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    trace = sample(name).file
    assert trace.header["target"]["exe"].startswith(("/usr/bin/", "/opt/qemu-"))
    frame = trace.frame
    texts = [str(text) for column in frame.select_dtypes("category") for text in
             frame[column].cat.categories]  # fmt: skip
    text = "\n".join(texts)
    for path in ("/home/", "/root/", "/tmp/"):
        assert path not in text
    host = socket.gethostname()
    # A host may be called like a word of QEMU's.
    assert len(host) < 5 or host not in text
