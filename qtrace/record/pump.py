"""A recording that takes its rows by itself, while its owner does something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from qtrace.host.unanswered import join
from qtrace.record.loop import record
from qtrace.record.recording import Recording
from qtrace.record.recording_options import Limits, RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.schema import Event


class Pump:
    """Runs a recording's loop in a thread, as long as the context lasts.

    Meanwhile nobody else may poll or stop the recording. What the loop fails with, its owner
    gets: from ``take`` and ``wait``, and at the end of the context.

    Attributes:
        warnings: what was to be told so far, in sentences.
    """

    def __init__(self, recording: Recording, limits: Limits | None = None) -> None:
        self._recording = recording
        self._limits = limits or Limits()
        self._asked = ""
        self._rows: list[Event] = []
        self._news = threading.Condition()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="qtrace-pump", daemon=True)
        self.warnings: list[str] = []

    def __enter__(self) -> Pump:
        # What stacks need is read while there is a process to read it from, whatever its owner
        # does to it next.
        self._saw(self._recording.poll(0))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._asked = "its owner has ended it"
        join(self._thread)
        if error is None:
            self._raise()

    def take(self) -> list[Event]:
        """The rows that came since the last call."""
        with self._news:
            rows, self._rows = self._rows, []
        self._raise()
        return rows

    def wait(self, timeout_s: float) -> list[Event]:
        """The same; where there is none yet, it is waited for one at most so long."""
        with self._news:
            if not self._rows and self.runs:
                self._news.wait(timeout_s)
        return self.take()

    @property
    def runs(self) -> bool:
        """Whether more rows may come; not when the target has ended."""
        return self._thread.is_alive()

    def wait_for_end(self, timeout_s: float) -> None:
        """Until the target has ended, and its last row is taken; at most so long."""
        self._thread.join(max(timeout_s, 0.0))

    def _run(self) -> None:
        try:
            record(
                self._recording,
                self._limits,
                lambda: self._asked,
                self.warnings.append,
                saw=self._saw,
            )
        except BaseException as failure:
            self._failure = failure
        finally:
            with self._news:
                self._news.notify_all()

    def _saw(self, rows: list[Event]) -> None:
        if rows:
            with self._news:
                self._rows += rows
                self._news.notify_all()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure


@contextmanager
def pumped(pid: int, options: RecordingOptions, reason: str) -> Iterator[Pump]:
    """A recording that goes on by itself until the context ends, for that ``reason``.

    Raises what ``start_recording`` and ``Recording.stop`` do.
    """
    with start_recording(pid, options) as recording:
        with Pump(recording) as pump:
            yield pump
        recording.stop("target exited" if recording.ended else reason)
