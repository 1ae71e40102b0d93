"""Who reads the recordings: this process, or several on this machine (Dask: fleet/cluster.py).

Each file is a task of its own; rows come in any order.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Protocol

from qtrace.analysis.fleet.files import File
from qtrace.analysis.fleet.rows import Row, analysis_version, row_of

# Of files of each size, the hashes of contents that are known.
Known = Mapping[int, Collection[str]]
DIED = "a worker died while it read it"
MEMORY = "give each worker more memory, or read with fewer at a time"


class Workers(Protocol):
    """Whoever makes rows of files."""

    def rows(self, files: Collection[File], known: Known) -> Iterator[Row]:
        """A row for each file, as they come.

        Raises:
            FleetFailed: nobody is there to make them; what came before stands.
        """


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """A terminal sends Ctrl-C to all processes at once: those that are started here leave it to
    this one, as do those that the threads which are started here start later."""
    # It would let the signal through again when it is started, with the first process.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Serial:
    """This process, one after the other."""

    def rows(self, files: Collection[File], known: Known) -> Iterator[Row]:
        version = analysis_version()
        for file in files:
            yield row_of(file, version, known.get(file.size, ()))


@dataclass(frozen=True)
class Processes:
    """So many processes of this machine. What kills one twice, the second time alone, is told."""

    count: int

    def rows(self, files: Collection[File], known: Known) -> Iterator[Row]:
        suspects: list[File] = []
        yield from self._pool(list(files), known, self.count, suspects)
        for file in suspects:
            killed: list[File] = []
            yield from self._pool([file], known, 1, killed)
            if killed:
                yield Row(file.url, file.size, file.stamp, error=DIED, remedy=MEMORY)

    def _pool(
        self, files: list[File], known: Known, count: int, suspects: list[File]
    ) -> Iterator[Row]:
        """Rows of these; files that were in work when a worker died become ``suspects``."""
        version, waiting = analysis_version(), list(reversed(files))
        # A forked child would have this process's threads' locks, without the threads.
        context = multiprocessing.get_context("spawn")
        while waiting:
            with ProcessPoolExecutor(count, mp_context=context) as pool:
                working: dict[Future[Row], File] = {}
                try:
                    while waiting or working:
                        while waiting and len(working) < 2 * count:
                            file = waiting[-1]
                            hashes = tuple(known.get(file.size, ()))
                            with interrupts_wait():
                                working[pool.submit(row_of, file, version, hashes)] = file
                            waiting.pop()  # Not before: a pool that breaks takes nothing.
                        done, _ = wait(working, return_when=FIRST_COMPLETED)
                        for future in done:
                            row = future.result()
                            del working[future]
                            yield row
                except BrokenProcessPool:
                    suspects += working.values()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
