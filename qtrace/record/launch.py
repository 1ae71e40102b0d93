"""A recording of a program that is started with every probe armed before its first line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from qtrace.errors import NotQemu, TargetError, UnsupportedBinary
from qtrace.inspection.qemu import LiveQemu
from qtrace.machine import heap
from qtrace.process.process import Process
from qtrace.record.all_events.all_recorder import AllRecorder
from qtrace.record.child import Child
from qtrace.record.ebpf.bpf_program import Program, load_ahead
from qtrace.record.ebpf.ebpf_recorder import EbpfProbes
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.record.plans import make_plans
from qtrace.record.recording import Recording
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import arm, open_writer, set_probes
from qtrace.sites.scan_cache import scan_module

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
    everything = options.everything
    writer, rotation = open_writer(options)
    child = Child(command, output_fd)
    try:
        program = program or load_ahead(everything=everything, compiled=options.compiled)
        child.release()
        qemu = _qemu_of(child, given_up)
        module = qemu.binary
        plans = make_plans(module, options.patterns, everything=everything, optional=True)
        every = None
        exe = f"/proc/{child.pid}/exe"
        if plans.everything is not None:
            every = AllRecorder.load(
                plans.everything, module, child.pid, exe,
                options.ring_pages, options.stacks_every, compiled=options.compiled,
            )  # fmt: skip
        uprobes = Uprobes(child.pid, exe, module.elf.offset_of)
        probes = EbpfProbes(uprobes, program.result(), child.pid)
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


def _qemu_of(child: Child, given_up: Callable[[], bool]) -> LiveQemu:
    """The program that the child, or what it started, has become when it is one of QEMU's, before
    it runs.

    Raises TargetError when none of them becomes one.
    """
    first = Path(child.path).name
    while True:
        process = Process(child.pid)
        try:
            return LiveQemu(process, scan_module(process.binary))
        except (NotQemu, UnsupportedBinary) as error:
            if not child.next_program(given_up):
                last = process.program
                became = f": it became {last}" if last != first else ""
                raise TargetError(
                    f"{first} has executed no QEMU program{became}",
                    "let it execute a QEMU program, or have QEMU started and use qtrace attach",
                ) from error
