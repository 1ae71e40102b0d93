"""The scenarios that leave nothing to chance: each claim of the mail thread, on stock QEMUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.lab.guest import Accelerator, find_qemu
from qtrace.sites.experiment_places import drops_bql
from qtrace.trace.reader import read_trace

pytestmark = [pytest.mark.bpf, pytest.mark.gdb, pytest.mark.qemu]

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0


def lab(scenario: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qtrace", "lab", scenario, *map(str, arguments), "--format", "json"],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=2 * LIMIT_S,
    )  # fmt: skip


def shown(scenario: str, qemu: Path, accel: str, *arguments: object) -> dict[str, Any]:
    run = lab(scenario, "--qemu", qemu, "--accel", accel, *arguments)
    assert run.returncode == 0, run.stderr + run.stdout
    result: dict[str, Any] = json.loads(run.stdout)
    assert result["shown"]
    assert result["verdict"] == result["expected"]
    assert result["lost_events"] == 0
    assert result["seconds"] < LIMIT_S
    return result


def crashes(qemu: Path) -> bool:
    return drops_bql(Module(Elf(qemu), 0))


def test_vcpu_poll_steered_needs_one_save(qemu_binary: Path, accel: Accelerator) -> None:
    result = shown("vcpu-poll", qemu_binary, accel, "--steer")
    assert result["rounds"] == 1
    (half,) = result["bottom_halves"]
    assert half["findings"][0]["thread"] == f"CPU 0/{accel.upper()}"


@pytest.mark.parametrize("job", ["load", "delete"])
def test_the_other_snapshot_jobs_run_on_a_vcpu_too(
    qemu_binary: Path, accel: Accelerator, job: str
) -> None:
    result = shown(job, qemu_binary, accel)
    (half,) = result["bottom_halves"]
    assert half["name"] == f"snapshot_{job}_job_bh"
    assert half["verdicts"] == {"vcpu-poll": result["rounds"]}
    assert result["facts"]["steered"] == result["rounds"]


def test_rerouted_none_runs_on_a_vcpu_and_the_reply_is_prompt(
    qemu_binary: Path, accel: Accelerator
) -> None:
    result = shown("reroute", qemu_binary, accel, "--rounds", 200)
    (half,) = result["bottom_halves"]
    assert half["verdicts"] == {"main-loop": 201}
    assert result["facts"]["reply_ms"] < result["facts"]["job_ms"]


def test_the_late_reply_is_cured_by_rerouting(qemu_binary: Path, accel: Accelerator) -> None:
    result = shown("late-reply", qemu_binary, accel)
    replies = result["facts"]["replies"]
    assert [one["kind"] for one in replies] == ["stock"] * 3 + ["rerouted"] * 3
    assert len(result["lines"]) == 7


def test_stop_and_resume_tell_a_save_on_a_vcpu(qemu_binary: Path, accel: Accelerator) -> None:
    if crashes(qemu_binary):
        run = lab("stop-resume", "--qemu", qemu_binary, "--accel", accel)
        assert run.returncode == 3
        assert "qtrace lab crash" in run.stderr
        return
    result = shown("stop-resume", qemu_binary, accel)
    *main, vcpu = result["facts"]["saves"]
    assert {one["run_on"] for one in main} == {"main"}
    assert vcpu["run_on"] == "vcpu"
    # None: the main loop took the request meanwhile.
    assert vcpu["gap_ms"] is None or vcpu["gap_ms"] < 5
    assert result["bottom_halves"][0]["verdicts"] == {"main-loop": 3, "vcpu-poll": 1}


def test_the_verdict_outlives_the_crash(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    if not crashes(qemu_binary):
        run = lab("crash", "--qemu", qemu_binary, "--accel", accel)
        assert run.returncode == 3
        assert "does not crash" in run.stderr
        return
    trace = tmp_path / "trace.csv"
    result = shown("crash", qemu_binary, accel, "-o", trace)
    assert "Assertion" in result["facts"]["ended"]
    assert read_trace(trace).exit == {"signal": 6}
    stack = result["bottom_halves"][0]["findings"][0]["stack"]
    assert stack.index("aio_poll") < stack.index("memory_region_dispatch_write")
    assert stack[-1] != "[unreadable]"


def test_steering_is_for_what_chance_decides() -> None:
    run = lab("main-loop", "--steer", "--qemu", find_qemu())
    assert run.returncode == 2
    assert "--steer" in run.stderr


def test_stranded_is_found_by_attach_and_by_inspect(qemu_binary: Path, accel: Accelerator) -> None:
    result = shown("stranded", qemu_binary, accel)
    half = next(h for h in result["bottom_halves"] if h["name"] == "snapshot_save_job_bh")
    (finding,) = half["findings"]
    assert finding["verdict"] == "stranded"
    assert finding["context"] == "iohandler"
    waits = ["job_finish_sync_locked", "job_cancel_sync_all", "qemu_cleanup"]
    start = finding["stack"].index(waits[0])
    assert finding["stack"][start : start + 3] == waits
    assert "stranded in `iohandler`" in result["facts"]["inspect"]
    assert any("snapshot_save_job_bh" in text for text in result["facts"]["warnings"])
