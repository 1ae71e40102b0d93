"""A recording of a program that is started with every probe armed before its first line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from qtrace.errors import NotQemu, TargetError, UnsupportedBinary
from qtrace.inspection.qemu import LiveQemu
from qtrace.machine import heap
from qtrace.process.process import Process
from qtrace.record.child import Child
from qtrace.record.ebpf.bpf_program import Program, load_ahead
from qtrace.record.ebpf.ebpf_recorder import EbpfProbes
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.record.plans import Plans, search
from qtrace.record.recording import Recording
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import arm, load_everything, open_writer, set_probes

# Without a context nothing is scheduled, so that nothing is lost meanwhile.
CONTEXTS_WAIT_S = 5.0


def launch(
    command: Sequence[str],
    options: RecordingOptions,
    program: Future[Program] | None = None,
    output_fd: int | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[Recording, Child]:
    """Start a QEMU program under the probes. It is recorded by eBPF, and has no QMP socket yet.

    Args:
        command: it, or what becomes or starts it: a wrapper.
        program: the BPF program, when its loading was begun before.
        output_fd: where the program's standard output goes.
        given_up: whether a wrapper is not to be waited for any more.

    Raises:
        QtraceError: whatever stands in the way; no QEMU program has run then.
    """
    writer, rotation = open_writer(options)
    child = Child(command, output_fd)
    try:
        child.release()
        process, plans, program = _find(child, options, program, given_up)
        every = load_everything(plans, process, options)
        uprobes = Uprobes(process.pid, process.exe, process.binary.elf.offset_of)
        probes = EbpfProbes(uprobes, program.result(), process.pid)
        qemu = LiveQemu(process, plans.scan)
        try:
            armed_ns = set_probes(qemu, plans, probes, every)
            contexts = qemu.contexts
            heap.give_back()
            child.go()
            # Its contexts' names can only be read while it lives: qemu-img may not for long.
            contexts.wait(CONTEXTS_WAIT_S, child.ended)
            # Its libraries came meanwhile.
            qemu.space.refresh()
            recording = arm(qemu, plans, probes, writer, options, every, armed_ns, rotation)
        except BaseException:
            probes.close()
            if every is not None:
                every.close()
            raise
    except BaseException:
        child.kill()
        raise
    return recording, child


def _find(
    child: Child,
    options: RecordingOptions,
    program: Future[Program] | None,
    given_up: Callable[[], bool],
) -> tuple[Process, Plans, Future[Program]]:
    """The sites of the program that the child, or what it started, has become when it is one of
    QEMU's, before it runs; the loading of the BPF program is begun meanwhile.

    Raises TargetError when none of them becomes one.
    """
    first = Path(child.path).name
    while True:
        process = Process(child.pid)
        try:
            with search(process, options, program, runs=False) as searching:
                program = program or load_ahead(
                    everything=options.everything, compiled=options.compiled
                )
                return process, searching.result(), program
        except (NotQemu, UnsupportedBinary) as error:
            if not child.next_program(given_up):
                last = process.program
                became = f": it became {last}" if last != first else ""
                raise TargetError(
                    f"{first} has executed no QEMU program{became}",
                    "let it execute a QEMU program, or have QEMU started and use qtrace attach",
                ) from error
