"""The watching recording of a check: QMP commands, jobs, snapshots; a check goes on without it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from qtrace.errors import NoSuchProcess, QtraceError
from qtrace.host.capabilities import NEEDS_RIGHTS, has_ebpf_rights
from qtrace.record.ebpf.bpf_program import Program, load_ahead
from qtrace.record.recording import Recording
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording

WHAT = "QMP commands and snapshot jobs"


def load() -> Future[Program] | None:
    """Begin to load what a recording needs; None where there is no right to."""
    return load_ahead() if has_ebpf_rights() else None


class Watching:
    """A recording from now on, or none.

    Args:
        program: as ``load`` began it; None where it is to do without a recording.

    Attributes:
        unseen: what it does not show, and why, in words; empty when it shows all.
    """

    def __init__(self, pid: int, path: Path, program: Future[Program] | None) -> None:
        """Raises NoSuchProcess."""
        self.pid = pid
        self.unseen = ""
        self._recording: Recording | None = None
        if program is None:
            self.unseen = WHAT if has_ebpf_rights() else f"{WHAT}: {NEEDS_RIGHTS}"
            return
        try:
            self._recording = start_recording(pid, RecordingOptions(path), program)
        except NoSuchProcess:
            raise
        except QtraceError as error:
            self.unseen = f"{WHAT}, for which eBPF is needed: {error.message}"

    def wait(self, seconds: float) -> None:
        """Record for so long. Raises NoSuchProcess when the target ends."""
        at = time.monotonic() + seconds
        while (left := at - time.monotonic()) > 0:
            if self._recording is None:
                time.sleep(left)
                continue
            try:
                self._recording.poll(left)
            except QtraceError as error:
                self._fail(error)
            else:
                if self._recording.ended:
                    raise NoSuchProcess(self.pid)

    def stop(self) -> bool:
        """End it; whether there is something to be read."""
        if self._recording is not None:
            try:
                self._recording.stop("duration")
            except QtraceError as error:
                self._fail(error)
        return self._recording is not None

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Take the probes off, whatever has gone wrong."""
        if self._recording is not None:
            with suppress(QtraceError):
                self._recording.stop("interrupted")

    def _fail(self, error: QtraceError) -> None:
        """What there is of it is not all: it shows nothing."""
        self.__exit__()
        self._recording = None
        self.unseen = f"{WHAT}, as the recording failed: {error.message}"
