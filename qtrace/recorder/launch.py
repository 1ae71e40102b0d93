"""A recording of a program that is started with every probe armed before its first line."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from qtrace.recorder.all_recorder import AllRecorder
from qtrace.recorder.child import Child
from qtrace.recorder.ebpf import EbpfProbes
from qtrace.recorder.plans import make_plans
from qtrace.recorder.program import Program, load_ahead
from qtrace.recorder.session import Recording
from qtrace.recorder.start import arm
from qtrace.recorder.uprobes import Uprobes
from qtrace.target.contexts import ContextNames
from qtrace.target.elf import Elf
from qtrace.target.maps import Module
from qtrace.target.process import Process
from qtrace.trace.raw import RawWriter
from qtrace.trace.writer import CsvWriter

# Without a context nothing is scheduled, so that nothing is lost meanwhile.
CONTEXTS_WAIT_S = 5.0


def launch(
    command: Sequence[str],
    *,
    output: Path,
    patterns: Sequence[str] = (),
    force: bool = False,
    program: Future[Program] | None = None,
    everything: bool = False,
    ring_pages: int | None = None,
    stacks_every: int = 0,
    output_fd: int | None = None,
) -> tuple[Recording, Child]:
    """Start a QEMU program under the probes; see ``start_recording`` for the arguments.

    Args:
        output_fd: where the program's standard output goes.

    Raises:
        QtraceError: whatever stands in the way; nothing is started then.
    """
    writer = RawWriter(output, force) if everything else CsvWriter(output, force)
    child = Child(command, output_fd)
    try:
        program = program or load_ahead(everything=everything)
        # Its own code is the file's: there is no process yet that could differ.
        module = Module(Elf(child.path), 0)
        plans = make_plans(module, patterns, everything=everything, optional=True)
        library = program.result().library
        every = None
        if plans.everything is not None:
            every = AllRecorder.load(
                plans.everything, module, child.pid, child.path, ring_pages, stacks_every
            )
        uprobes = Uprobes(library, child.pid, child.path, module.elf.offset_of)
        probes = EbpfProbes(uprobes, program.result())
        try:
            probes.attach(plans.watch.sites)
            if every is not None:
                every.attach()
            child.release()
            process = Process(child.pid)
            contexts = ContextNames(plans.scan, process.binary, process.memory)
            child.go()
            # Its contexts' names can only be read while it lives: qemu-img may not for long.
            contexts.wait(CONTEXTS_WAIT_S, child.ended)
            # Its libraries came meanwhile.
            process.space.refresh()
            recording = arm(
                process, plans, probes, writer,
                everything=every, armed=True, contexts=contexts,
            )  # fmt: skip
        except BaseException:
            probes.close()
            if every is not None:
                every.close()
            raise
    except BaseException:
        child.kill()
        raise
    return recording, child
