"""Start a recording of a live process: find and compare the sites, set the probes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from qtrace.errors import NoSuchProcess
from qtrace.recorder.all_recorder import AllRecorder
from qtrace.recorder.header import attach_row
from qtrace.recorder.plans import Plans, make_plans
from qtrace.recorder.probes import Backend, Probes, open_probes
from qtrace.recorder.program import Program, load_ahead
from qtrace.recorder.session import Recording
from qtrace.recorder.stall import Stalls
from qtrace.target.all_plan import modules_cancel
from qtrace.target.contexts import ContextNames
from qtrace.target.live import LiveSource
from qtrace.target.look import Looker
from qtrace.target.process import Process, unless_it_ends
from qtrace.target.threads import ThreadRoles
from qtrace.trace.raw import RawWriter
from qtrace.trace.writer import CsvWriter

STALL_AFTER_S = 2.0


def start_recording(
    pid: int,
    *,
    output: Path,
    patterns: Sequence[str] = (),
    force: bool = False,
    qmp_socket: Path | None = None,
    backend: Backend = "ebpf",
    program: Future[Program] | None = None,
    everything: bool = False,
    ring_pages: int | None = None,
    stacks_every: int = 0,
    stall_after_s: float = STALL_AFTER_S,
) -> Recording:
    """Arm every probe of a recording.

    Args:
        output: the CSV to write; with ``everything`` a raw file.
        patterns: globs of bottom-half names, ``DEFAULT_WATCHED`` when empty.
        qmp_socket: a QMP socket of the target to ask for its threads.
        backend: what to record with; ``auto`` is eBPF where it works, else gdb.
        program: the BPF program, when its loading was begun before.
        everything: record every bottom half beside the watched ones (`--all`).
        ring_pages: of each CPU's ring buffer for them.
        stacks_every: the whole stack of every so manieth event of theirs; 0 for none.
        stall_after_s: after how long a pending bottom half is looked at.

    Raises:
        QtraceError: whatever stands in the way; nothing is armed then.
    """
    with unless_it_ends(pid):
        writer = RawWriter(output, force) if everything else CsvWriter(output, force)
        process = Process(pid)
        plans = make_plans(
            process.binary, patterns, everything=everything, optional=everything,
            imports_cancel=everything and modules_cancel(process.space),
        )  # fmt: skip
        plans.check(process)
        every = None
        if plans.everything is not None:
            backend = "ebpf"
            program = program or load_ahead(everything=True)
            every = AllRecorder.load(
                plans.everything, process.binary, pid, process.exe, ring_pages, stacks_every
            )
        probes, why = open_probes(backend, process, program)
        recording = arm(
            process, plans, probes, writer, qmp_socket, every, stall_after_s=stall_after_s
        )
    recording.why = why
    return recording


def arm(
    process: Process,
    plans: Plans,
    probes: Probes,
    writer: CsvWriter | RawWriter,
    qmp_socket: Path | None = None,
    everything: AllRecorder | None = None,
    armed: bool = False,
    contexts: ContextNames | None = None,
    stall_after_s: float = STALL_AFTER_S,
) -> Recording:
    """Begin a recording whose sites are chosen and compared; see ``start_recording``.

    Args:
        armed: whether all probes are set already.
        contexts: the names of the contexts, when they were looked up before.
    """
    process.binary.static_names = plans.scan.static_names
    known = {}
    if qmp_socket is not None:
        from qtrace.target.qmp import QmpClient, thread_roles

        with QmpClient(qmp_socket) as client:
            known = thread_roles(client)
    try:
        roles = ThreadRoles(process, known)
        stalls = Stalls(
            lambda: Looker(LiveSource(process)), plans.watch.watched, process.binary.bias,
            int(stall_after_s * 1e9),
        )  # fmt: skip
        recording = Recording(
            process, plans, probes, writer, roles, stalls, everything, contexts, from_start=armed
        )
        began_ns = time.monotonic_ns()
        if not armed:
            probes.attach(plans.watch.sites)
            if everything is not None:
                everything.attach()
        recording.begin(attach_row(began_ns, probes.name, process, plans, everything))
    except BaseException as error:
        probes.close()
        if everything is not None:
            everything.close()
        if isinstance(error, ProcessLookupError):
            raise NoSuchProcess(process.pid) from error
        raise
    return recording
