"""Schedulers, workers and servers of their own processes, on loopback, ended by their ids."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.live.support.ptraced import until

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(
    *command: str, port: int = 0, log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, from when it listens at its port until the block ends."""
    variables = {**os.environ, **(environment or {})}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=variables, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        if port:
            until(lambda: listens(port) or process.poll() is not None, f"a server at {port}")
            assert process.poll() is None, log.read_text()
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """It and its children, which have its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((LOOPBACK, port)) == 0


def scheduler(
    port: int, folder: Path
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A Dask scheduler."""
    return running(
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", LOOPBACK,
        "--port", str(port), "--no-dashboard", "--no-show", port=port, log=folder / "scheduler.log",
    )  # fmt: skip


def worker(
    port: int, folder: Path, code: Path = ROOT
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A Dask worker with its nanny, which knows the qtrace of ``code``."""
    path = os.pathsep.join([str(code), os.environ["PYTHONPATH"]])
    return running(
        sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{LOOPBACK}:{port}",
        "--nthreads", "1", "--host", LOOPBACK, "--no-dashboard",
        log=folder / "worker.log", environment={"PYTHONPATH": path},
    )  # fmt: skip


def fleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command; its own cluster and what multiprocessing keeps for it end with it."""
    command = [sys.executable, "-m", "qtrace", "fleet", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
