"""Dask: a cluster of processes on this machine, or an existing scheduler.

Plain tasks, one for each file: never ``dd.read_parquet`` on recordings, which for thousands of them
reads all their indexes in the client before any worker has something to do (dask#4701).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from qtrace.analysis.fleet.files import File
from qtrace.analysis.fleet.rows import OtherVersion, Row, analysis_version, row_of
from qtrace.analysis.fleet.workers import DIED, MEMORY, Known, interrupts_wait
from qtrace.errors import ExtraMissing, FleetFailed

# For how long workers are waited for, and a scheduler that went away; and for the latter at first.
PATIENCE_S, FIRST_S = 60, 20
LOOPBACK = "127.0.0.1"
ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://\S*[^\s:/]:[0-9]+|[^\s:/]+:[0-9]+")


@dataclass(frozen=True)
class Dask:
    """Workers of a Dask cluster.

    Attributes:
        scheduler: the address of an existing one; empty: a cluster of our own on this machine.
        count: of its worker processes, where it is our own.
        patience_s: see ``PATIENCE_S``.
    """

    scheduler: str = ""
    count: int = 1
    patience_s: float = PATIENCE_S

    def rows(self, files: Collection[File], known: Known) -> Iterator[Row]:
        """See ``Workers``. A scheduler that went away may come back in time."""
        left = {file.url: file for file in files}
        patience_s = min(FIRST_S, self.patience_s)
        while left:
            before = len(left)
            with self._client(patience_s) as client:
                self._check(client)
                patience_s = self.patience_s
                for row in _once(client, list(left.values()), known):
                    del left[row.url]
                    yield row
            if len(left) == before:
                raise FleetFailed(
                    f"the scheduler {self.scheduler or 'here'} takes no work",
                    "look at its log; the same command goes on from here",
                )

    @contextlib.contextmanager
    def _client(self, patience_s: float) -> Iterator[Any]:
        try:
            import distributed
        except ImportError as error:
            raise ExtraMissing("fleet", f"Dask is not installed: {error}") from error
        # What its heartbeats and workers have to say is no answer to the user.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        with contextlib.ExitStack() as stack:
            address: Any = self.scheduler
            if not address:
                with interrupts_wait():
                    cluster = distributed.LocalCluster(
                        n_workers=self.count,
                        threads_per_worker=1,
                        processes=True,
                        host=LOOPBACK,
                        dashboard_address=f"{LOOPBACK}:0",
                        worker_dashboard_address=None,
                        silence_logs=logging.CRITICAL,
                    )
                address = stack.enter_context(cluster)
            elif not ADDRESS.fullmatch(address):
                # distributed would try for good.
                raise FleetFailed(f"{address} is no address of a scheduler", "as tcp://HOST:8786")
            try:
                client = distributed.Client(address, timeout=patience_s, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise FleetFailed(
                    f"no Dask scheduler answers at {self.scheduler}",
                    "start one (dask scheduler), or read here with --workers N",
                ) from error
            yield stack.enter_context(client)

    def _check(self, client: Any) -> None:
        """Refuse workers of other code, by their names.

        Raises:
            FleetFailed
        """
        try:
            client.wait_for_workers(1, timeout=self.patience_s)
        except TimeoutError as error:
            raise FleetFailed(
                f"the scheduler {self.scheduler} has no workers", "start some: dask worker ADDRESS"
            ) from error
        own = analysis_version()
        told = client.run(analysis_version, on_error="return")
        for worker, found in sorted(told.items()):
            if found != own:
                raise _other(worker, found if isinstance(found, str) else "none that works")


def _once(client: Any, files: list[File], known: Known) -> Iterator[Row]:
    """Rows until all are there, or the scheduler is not."""
    from distributed import KilledWorker, as_completed

    version = analysis_version()
    tasks = {
        client.submit(row_of, file, version, tuple(known.get(file.size, ())), pure=False): file
        for file in files
    }
    for future in as_completed(list(tasks), loop=client.loop):
        file = tasks.pop(future)
        try:
            yield future.result()
        except KilledWorker:
            yield Row(file.url, file.size, file.stamp, error=DIED, remedy=MEMORY)
        except OtherVersion as error:
            raise _other("a worker that came later", str(error)) from error
        except ImportError as error:
            raise _other("a worker that came later", str(error)) from error
        except (CancelledError, OSError):
            return
        future.release()


def _other(worker: str, version: str) -> FleetFailed:
    return FleetFailed(
        f"worker {worker} has another qtrace: {version}; here it is {analysis_version()}",
        "install the same qtrace there, and start it again",
    )
