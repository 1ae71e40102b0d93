"""Start a recording of a live process: find and compare the sites, set the probes."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from qtrace.errors import NoSuchProcess
from qtrace.host import privileges
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.machine import heap
from qtrace.process.process import Process, unless_it_ends
from qtrace.record.ebpf.bpf_program import Program, load_ahead
from qtrace.record.header import attach_row
from qtrace.record.looks_apart import LooksApart
from qtrace.record.plans import Plans, search
from qtrace.record.probes import Probes, open_probes
from qtrace.record.recording import Recording
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.rotation import Rotation
from qtrace.record.stall import Stalls
from qtrace.roles import Role
from qtrace.sites.running_code import check_in_place
from qtrace.trace.raw import RawWriter
from qtrace.trace.writer import CsvWriter

if TYPE_CHECKING:
    from qtrace.record.all_events.all_recorder import AllRecorder

NO_LOOKS = (
    "no look can be taken, as this QEMU exports no functions: what never runs, and loops that do "
    "not come back, are not told"
)


def start_recording(
    pid: int, options: RecordingOptions, program: Future[Program] | None = None
) -> Recording:
    """Arm every probe of a recording.

    Args:
        program: the BPF program, when its loading was begun before.

    Raises:
        QtraceError: whatever stands in the way; nothing is armed then.
    """
    with unless_it_ends(pid):
        writer, rotation = open_writer(options)
        process = Process(pid)
        backend = "ebpf" if options.everything else options.backend
        with search(process, options, program, runs=True) as searching:
            if backend != "gdb":
                # Meanwhile, and not before: see Forked.
                program = program or load_ahead(
                    everything=options.everything, compiled=options.compiled
                )
            plans = searching.result()
            every = load_everything(plans, process, options)
            probes, why = open_probes(backend, process, program, compiled=options.compiled)
            qemu = LiveQemu(process, plans.scan)
            if options.qmp_socket is not None:
                qemu.roles.tell(_told_by_qmp(options.qmp_socket))
            heap.give_back()
            recording = arm(qemu, plans, probes, writer, options, every, rotation=rotation)
    recording.why = why
    return recording


def load_everything(
    plans: Plans, process: Process, options: RecordingOptions
) -> AllRecorder | None:
    """The program of `--all`, where that is recorded. Raises RecorderUnavailable."""
    if plans.everything is None:
        return None
    # It takes numpy, which a recording without it does without.
    from qtrace.record.all_events.all_recorder import AllRecorder

    return AllRecorder.load(
        plans.everything, process.binary, process.pid, process.exe,
        options.ring_pages, options.stacks_every, compiled=options.compiled,
    )  # fmt: skip


def open_writer(options: RecordingOptions) -> tuple[CsvWriter | RawWriter, Rotation | None]:
    """What takes the rows, and turns from file to file. Raises OutputExists, OutputFailed."""
    kind = RawWriter if options.everything else CsvWriter
    if options.rotate is None:
        return kind(options.output, options.force), None
    rotation = Rotation(options.output, options.rotate, options.keep_files)
    return kind(rotation.first, options.force, aside=True), rotation


def arm(
    qemu: LiveQemu,
    plans: Plans,
    probes: Probes,
    writer: CsvWriter | RawWriter,
    options: RecordingOptions,
    everything: AllRecorder | None = None,
    armed_ns: int | None = None,
    rotation: Rotation | None = None,
) -> Recording:
    """Begin a recording whose sites are chosen and compared; see ``start_recording``.

    Args:
        armed_ns: since when all probes are set and count what they lose, where they are already.
    """
    apart: LooksApart | None = None
    try:
        looks = options.looks and _can_look(qemu)
        stall_after_ns = int(options.stall_after_s * 1e9) if looks else 0
        stalls = Stalls(
            (lambda: Looker(qemu)) if looks else None, plans.watch.watched, qemu.bias,
            stall_after_ns, by_us=probes.name == "gdb",
            sentence=NO_LOOKS if options.looks and not looks else "",
            from_start=armed_ns is not None,
        )  # fmt: skip
        confined = options.confined and probes.name == "ebpf"
        if confined and looks:
            apart = LooksApart(qemu, stalls)
        recording = Recording(
            qemu, plans, probes, writer, apart or stalls, everything,
            from_start=armed_ns is not None, rotation=rotation,
        )  # fmt: skip
        if armed_ns is None:
            armed_ns = set_probes(qemu, plans, probes, everything)
        if confined:
            privileges.give_up({*options.keep, *probes.needed()})
        recording.begin(attach_row(armed_ns, probes.name, qemu, plans, everything, stall_after_ns))
    except BaseException as error:
        probes.close()
        if everything is not None:
            everything.close()
        if apart is not None:
            apart.close()
        if isinstance(error, ProcessLookupError):
            raise NoSuchProcess(qemu.pid) from error
        raise
    return recording


def set_probes(qemu: LiveQemu, plans: Plans, probes: Probes, everything: AllRecorder | None) -> int:
    """Set them all; since when they are. Raises QtraceError when one is not."""
    probes.attach(plans.watch.sites)
    labels = {site.vaddr: site.label for site in plans.watch.sites}
    if everything is not None:
        everything.attach()
        labels |= {site.vaddr: f"--all {site.kind}" for site in everything.plan.sites}
    if probes.name == "ebpf":
        # gdb says itself what it could not set, and takes each out for whoever steps over it.
        check_in_place(qemu.binary, qemu.memory, labels)
    probes.count_losses(True)
    return time.monotonic_ns()


def _can_look(qemu: LiveQemu) -> bool:
    """Its lists are found by what exported functions do with them."""
    return qemu.binary.symbols.address("aio_bh_poll") is not None


def _told_by_qmp(socket: Path) -> dict[int, tuple[Role, str]]:
    from qtrace.process.qmp_client import QmpClient, thread_roles

    with QmpClient(socket) as client:
        return dict(thread_roles(client))
