"""QEMU, or qtrace, or both in namespaces of their own; a QEMU whose file is not there any more."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest, find_qemu
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attached, save, watched_half
from tests.live.support.benched import REQUESTS, frame_of
from tests.live.support.counted import counting_calls, own_copy
from tests.live.support.inspecting import context, inspect, thread
from tests.live.support.ptraced import children

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

SAVES = 7
NAMESPACES = "--user --map-root-user --pid --fork --kill-child --net --mount --ipc --uts"


needs_namespaces = pytest.mark.skipif(
    subprocess.run(f"unshare {NAMESPACES} true", shell=True, capture_output=True).returncode != 0,
    reason="this kernel, or who runs this, has no namespaces to give",
)


def check_recorded(guest: Guest, pid: int, program: Path) -> None:
    with counting_calls(program, "save_snapshot") as counts, attached(pid) as attach:
        save(guest, SAVES)
        _status, report, _err = attach.end()
    half = watched_half(report)
    assert counts["save_snapshot"] == half["scheduled"] == SAVES
    assert sum(half["verdicts"].values()) == SAVES
    assert set(half["verdicts"]) <= {"main-loop", "vcpu-poll"}


@needs_namespaces
def test_one_in_namespaces_of_its_own_is_recorded_and_looked_into(tmp_path: Path) -> None:
    """Of user, pid, network, mounts, IPC and host name, on an overlay: a container, seen from its
    host. A uprobe sits on the layer's file, whatever stands above."""
    copy, script = own_copy(find_qemu(), tmp_path / "layer"), tmp_path / "container"
    for folder in ("above", "root"):
        (tmp_path / folder).mkdir()
    root = tmp_path / "root"
    layers = f"lowerdir={tmp_path / 'above'}:{tmp_path / 'layer'}"
    script.write_text(
        f"#!/bin/sh\nexec unshare {NAMESPACES} sh -c 'mount -t overlay overlay -o {layers} {root} "
        f'&& exec {root}/usr/bin/{copy.name} "$@"\' sh "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with Guest(script, firmware="idle") as guest:
        (pid,) = children(guest.pid)
        check_recorded(guest, pid, copy)
        status, document, _err = inspect("--pid", pid)
    assert (status, document["verdict"]) == (0, "clear"), document["unclear"]
    assert context(document, "main")["tid"] == pid
    assert thread(document, pid)["role"] == "main"
    assert "vcpu" in {one["role"] for one in document["threads"]}


@needs_namespaces
def test_in_one_pid_namespace_both_call_a_thread_by_its_number_there(tmp_path: Path) -> None:
    """The kernel tells a probe the host's numbers, which nobody knows in there."""
    trace = tmp_path / "trace.csv"
    image = bench_command(find_qemu("qemu-img"), disk_image(tmp_path), REQUESTS)
    report = inside("run", "--all", "-o", trace, "--", *image)
    target = report["traces"][0]["target"]
    frame = frame_of(trace)
    runs = frame[frame["event"] == "run"]
    assert set(runs["tid"]) == {target["pid"]}
    assert set(runs["role"]) == {"main"}
    # Numbers begin anew in there: qtrace is 1.
    assert 1 < target["pid"] < frame["tid"].max() < 100


@pytest.mark.soak
@needs_namespaces
def test_in_one_pid_namespace_a_vcpu_threads_run_is_told_as_such() -> None:
    report = inside("lab", "vcpu-poll")
    assert report["verdict"] == "vcpu-poll"


def inside(*arguments: object) -> dict[str, Any]:
    """The report of a qtrace that starts its QEMU in a pid namespace of their own."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    qtrace = [sys.executable, "-m", "qtrace", arguments[0], "--format", "json"]
    run = subprocess.run(
        [*unshare, *qtrace, *map(str, arguments[1:])],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return report


@pytest.mark.soak
@needs_namespaces
def test_a_tracer_in_a_container_with_the_hosts_processes_records(tmp_path: Path) -> None:
    copy = own_copy(find_qemu(), tmp_path)
    container = ("unshare", "--net", "--mount", "--ipc", "--uts")
    with (
        Guest(copy, firmware="idle") as guest,
        counting_calls(copy, "save_snapshot") as counts,
        attached(guest.pid, within=container) as attach,
    ):
        save(guest, SAVES)
        _status, report, _err = attach.end()
    assert counts["save_snapshot"] == watched_half(report)["scheduled"] == SAVES


@pytest.mark.parametrize(
    "command",
    [["inspect", "--pid", "1"], ["ps"], ["doctor"], ["run", "--", "true"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("within", "said"),
    [
        # unshare --pid alone leaves /proc as it was: its numbers would mean other processes.
        pytest.param(
            ["unshare", "--pid", "--fork", "--kill-child"],
            "/proc shows another pid namespace than that of qtrace",
            id="of-others",
        ),
        pytest.param(
            ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
            "there is no /proc here",
            id="none",
        ),
    ],
)
def test_without_a_proc_of_ours_it_is_refused(
    within: list[str], said: str, command: list[str]
) -> None:
    run = subprocess.run(
        [*within, sys.executable, "-m", "qtrace", *command],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    error, remedy = run.stderr.splitlines()
    assert run.returncode == 3
    assert error.startswith(f"error: {said}")
    assert remedy.startswith("remedy: mount -t proc proc /proc")


@pytest.mark.soak
@pytest.mark.parametrize("replaced", [False, True])
def test_one_whose_file_is_gone_or_another_is_recorded(tmp_path: Path, replaced: bool) -> None:
    """As after an upgrade of its package."""
    copy = own_copy(find_qemu(), tmp_path)
    kept = tmp_path / "kept"
    kept.hardlink_to(copy)
    with Guest(copy, firmware="idle") as guest:
        copy.unlink()
        if replaced:
            copy.write_bytes(Path("/bin/true").read_bytes())
        check_recorded(guest, guest.pid, kept)
        assert inspect("--pid", guest.pid)[0] == 0
