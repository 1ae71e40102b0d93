"""What is asked of a recording: what it records and where to, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qtrace.trace.schema import Event

Backend = Literal["auto", "ebpf", "gdb"]
STALL_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """What is recorded, of a live process and of a program that is started for it.

    Attributes:
        output: the CSV to write; with ``everything`` a raw file.
        patterns: globs of bottom-half names, ``DEFAULT_WATCHED`` when empty.
        force: overwrite the output.
        qmp_socket: a QMP socket of the target to ask for its threads.
        backend: what to record with; ``auto`` is eBPF where it works, else gdb.
        everything: record every bottom half beside the watched ones (`--all`).
        ring_pages: of each CPU's ring buffer for them.
        stacks_every: the whole stack of every Nth event of theirs; 0 for none.
        stall_after_s: after how long what is pending, and a loop that is away, is told.
        looks: look what does not go on, and who is in the way.
        confined: give up all capabilities, for good, once every probe of eBPF is set; a child that
            keeps two takes the looks. For who is nothing but a recorder from then on.
        keep: but for these.
        compiled: with BPF programs that bcc compiles here, not those that come with qtrace.
        rotate: go on in a new file at so many bytes (``chain.file_of`` the output).
        keep_files: so many of them, the latest; None for all.
    """

    output: Path
    patterns: Sequence[str] = ()
    force: bool = False
    qmp_socket: Path | None = None
    backend: Backend = "ebpf"
    everything: bool = False
    ring_pages: int | None = None
    stacks_every: int = 0
    stall_after_s: float = STALL_AFTER_S
    looks: bool = True
    confined: bool = False
    keep: tuple[str, ...] = ()
    compiled: bool = False
    rotate: int | None = None
    keep_files: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a recording, or a part of it; None where nothing was asked for.

    Attributes:
        duration_s: it ends then.
        max_size: bytes on disk.
        max_overhead: percent of the target's time; the probes of `--all` are taken off then.
        until: a row of which this is true is the last.
    """

    duration_s: float | None = None
    max_size: int | None = None
    max_overhead: float | None = None
    until: Callable[[Event], bool] | None = None
