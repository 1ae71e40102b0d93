"""Recordings on real Dask clusters: the bytes of a serial run, whatever dies under way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qtrace.analysis.fleet import survey
from qtrace.analysis.fleet.cluster import Dask
from qtrace.errors import FleetFailed
from tests.fleet.processes import LOOPBACK, ROOT, end, fleet, free_port, scheduler, worker
from tests.fleet.samples import recordings
from tests.limits import TIMEOUT_S
from tests.live.support.ptraced import until
from tests.unit.fleets import saves

# Two hundred recordings on a busy machine.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

COUNT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("recordings"), COUNT)


@pytest.fixture(scope="module")
def serial(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table that one process writes."""
    table = tmp_path_factory.mktemp("serial") / "summary.parquet"
    rows = survey([str(folder)], table).rows
    assert len(rows) == COUNT
    assert sum(row.summary is None for row in rows) == COUNT // 50
    return table.read_bytes()


def test_a_cluster_of_its_own_writes_the_bytes_of_one_process(
    folder: Path, serial: bytes, tmp_path: Path
) -> None:
    table = tmp_path / "summary.parquet"
    done = fleet(str(folder), "-o", str(table), "--workers", "2")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert table.read_bytes() == serial


def test_ctrl_c_ends_it_in_one_line_and_keeps_what_was_read(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "summary.parquet"
    part = tmp_path / "summary.parquet.part"
    command = [sys.executable, "-m", "qtrace", "fleet", str(folder), "-o", str(table)]
    with subprocess.Popen(
        [*command, "--workers", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        until(lambda: part.exists() and part.read_bytes().count(b"\n") > 5, "some rows")
        # As a terminal does: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGINT
    assert told.strip() == f"what was read is kept in {part}: the same command goes on from it"
    assert part.read_bytes().count(b"\n") > 5


def test_two_workers_that_are_killed_under_way_change_nothing(
    folder: Path, serial: bytes, tmp_path: Path
) -> None:
    import distributed

    port, killed = free_port(), []
    address = f"tcp://{LOOPBACK}:{port}"
    with (
        scheduler(port, tmp_path),
        worker(port, tmp_path),
        worker(port, tmp_path),
        distributed.Client(address, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)

        def kill(done: int, _all: int) -> None:
            if done == 20:
                killed.extend(client.run(os.getpid).values())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        survey([str(folder)], tmp_path / "summary.parquet", Dask(address), progress=kill)
    assert len(set(killed)) == 2
    assert (tmp_path / "summary.parquet").read_bytes() == serial


def test_a_scheduler_that_is_started_anew_goes_on(
    folder: Path, serial: bytes, tmp_path: Path
) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        first = [
            stack.enter_context(scheduler(port, tmp_path)),
            stack.enter_context(worker(port, tmp_path)),
        ]
        restarted = []

        def restart(done: int, _all: int) -> None:
            if done == 20:
                for process in first:
                    end(process)
                restarted.append(stack.enter_context(scheduler(port, tmp_path)))
                restarted.append(stack.enter_context(worker(port, tmp_path)))

        survey(
            [str(folder)], tmp_path / "summary.parquet", Dask(f"tcp://{LOOPBACK}:{port}"),
            progress=restart,
        )  # fmt: skip
    assert len(restarted) == 2
    assert (tmp_path / "summary.parquet").read_bytes() == serial


def test_a_worker_with_other_code_is_refused_by_its_name(tmp_path: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT / "qtrace", code / "qtrace", ignore=shutil.ignore_patterns("__pycache__"))
    with (code / "qtrace/roles.py").open("a") as file:
        file.write("# other code\n")
    saves(tmp_path / "traces/a.csv")
    port = free_port()
    with (
        scheduler(port, tmp_path),
        worker(port, tmp_path, code),
        pytest.raises(FleetFailed, match=r"worker tcp://127\.0\.0\.1:\d+ has another qtrace"),
    ):
        survey([str(tmp_path / "traces")], tmp_path / "t.parquet", Dask(f"tcp://{LOOPBACK}:{port}"))


def test_nobody_at_the_address_and_a_scheduler_without_workers_are_told(tmp_path: Path) -> None:
    saves(tmp_path / "traces/a.csv")
    port = free_port()
    address = f"tcp://{LOOPBACK}:{port}"
    source, table = [str(tmp_path / "traces")], tmp_path / "t.parquet"
    with pytest.raises(FleetFailed, match=f"no Dask scheduler answers at {address}"):
        survey(source, table, Dask(address, patience_s=1))
    with scheduler(port, tmp_path), pytest.raises(FleetFailed, match="has no workers"):
        survey(source, table, Dask(address, patience_s=1))


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "tcp://host"])
def test_what_is_no_address_is_refused_at_once(address: str, tmp_path: Path) -> None:
    saves(tmp_path / "traces/a.csv")
    with pytest.raises(FleetFailed, match=f"{address} is no address of a scheduler"):
        survey([str(tmp_path / "traces")], tmp_path / "t.parquet", Dask(address))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_recordings_within_a_gigabyte(
    tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    folder, table = recordings(tmp_path / "traces", 10_000), tmp_path / "summary.parquet"
    program = f"""
import resource
from qtrace.analysis.fleet import survey
from qtrace.analysis.fleet.cluster import Dask
if __name__ == "__main__":
    rows = survey([{str(folder)!r}], {str(table)!r}, Dask(count=2)).rows
    print(len(rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    count, peak_kb = map(int, done.stdout.split())
    assert count == 10_000
    assert peak_kb < 1 << 20
    what = "10,000 recordings on two workers of Dask, one in fifty of them broken"
    soak_row(what, f"{count} rows", f"{peak_kb >> 10} MB in the client")
