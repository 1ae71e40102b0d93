"""A recording of every bottom half of a cell's guest, and what its lints find."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrace.lab.hunt.hunt_guest import HuntGuest
from qtrace.record.pump import pumped
from qtrace.record.recording_options import RecordingOptions
from qtrace.trace.convert import convert


@contextmanager
def traced(guest: HuntGuest, keep: Path | None) -> Iterator[list[str]]:
    """Record a guest as long as the context lasts; then the names of the lints that have a finding
    are in the list.

    Args:
        keep: where to leave the recording, a .parquet; None for nowhere.
    """
    found: list[str] = []
    raw, trace = guest.folder / "trace.raw", guest.folder / "trace.parquet"
    options = RecordingOptions(raw, everything=True, qmp_socket=guest.second_qmp_socket)
    with pumped(guest.pid, options, "cell ended"):
        yield found
    convert(raw, trace)
    # pandas takes a while to import: only who needs it does.
    from qtrace.analysis import open_traces
    from qtrace.analysis.lints import run_lints

    for result in run_lints(open_traces(trace)):
        if result.result == "finding":
            found.append(f"{result.lint}: {', '.join(sorted({f.name for f in result.findings}))}")
    if keep is not None:
        shutil.move(trace, keep)
