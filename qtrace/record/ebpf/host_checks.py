"""Whether eBPF recording works here: the BPF programs, and one probe from end to end."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np

from qtrace.errors import CodeMismatch, RecorderUnavailable
from qtrace.host.capabilities import ROOT, Check, Need
from qtrace.machine.arch_x86_64 import NOP_AND_RETURN
from qtrace.record.ebpf.bcc_module import find_bcc, load_bcc
from qtrace.record.ebpf.bpf_image import NoImage, read_prebuilt
from qtrace.record.ebpf.bpf_program import load_watch
from qtrace.record.ebpf.kernel_headers import find_headers
from qtrace.record.ebpf.record_ring import PAGE, RecordRing
from qtrace.record.ebpf.uprobes import Uprobes

COMPILE: tuple[Need, ...] = ("compile",)


def check_recorder(*, try_probe: bool = True) -> list[Check]:
    """The programs, and what would compile them; with ``try_probe`` also a probe, as far as the
    former are there."""
    compiler = [check_bcc(), check_headers()]
    programs = check_programs(can_compile=all(check.ok for check in compiler))
    checks = [programs, *compiler]
    if not try_probe or not programs.ok:
        return [*checks, Check("uprobe program", "untried", "needs what is missing above")]
    return [*checks, check_probe()]


def check_programs(can_compile: bool) -> Check:
    """Those that come with qtrace; where they cannot be used, bcc."""
    name = "BPF programs"
    try:
        read_prebuilt()
    except NoImage as reason:
        if can_compile:
            return Check(name, "ok", f"compiled by bcc: the prebuilt ones {reason}")
        return Check(
            name, "missing", f"the prebuilt ones {reason}, and nothing can compile them",
            "install qtrace again",
        )  # fmt: skip
    return Check(name, "ok", "prebuilt, of the sources that are here")


def check_bcc() -> Check:
    try:
        module = load_bcc()
        return Check("bcc", "ok", f"{find_bcc()}, version {module.__version__}", "", COMPILE)
    except RecorderUnavailable as error:
        return Check("bcc", "missing", error.message, error.remedy, COMPILE)


def check_headers() -> Check:
    try:
        return Check("kernel headers", "ok", find_headers().description, "", COMPILE)
    except RecorderUnavailable as error:
        return Check("kernel headers", "missing", error.message, error.remedy, COMPILE)


def check_probe() -> Check:
    """Loads the recorder's program, attaches it to a function of our own, calls that."""
    name = "uprobe program"
    try:
        hits = _hits_of_own_call()
    except (RecorderUnavailable, CodeMismatch) as error:
        return Check(name, "missing", error.message, error.remedy)
    except OSError as error:
        return Check(name, "missing", f"no probe can be set: {error.strerror}", ROOT)
    if hits == 0:
        return Check(
            name,
            "missing",
            "attached, but did not fire",
            "use a kernel with CONFIG_UPROBE_EVENTS=y, outside a container",
        )
    return Check(name, "ok", "loaded, attached and hit")


def _hits_of_own_call() -> int:
    """Probe a function that nobody else has, call it once, and count.

    A probe on a library would have the kernel lock the memory map of each process that has it, and
    wait for one that is stuck.
    """
    code = os.memfd_create("qtrace-doctor")
    os.write(code, NOP_AND_RETURN.ljust(PAGE))
    # Not writable: such a mapping takes no uprobe.
    mapped = mmap.mmap(code, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    function = ctypes.CFUNCTYPE(None)(np.frombuffer(mapped, np.uint8).ctypes.data)
    program = load_watch(ring_pages=1, step_ring_pages=1)
    uprobes = Uprobes(os.getpid(), f"/proc/self/fd/{code}", lambda offset: offset)
    try:
        ring = RecordRing(program.maps["steps"], pages=1)
        uprobes.attach(program.functions["on_step"], {0: "the doctor's own function"})
        function()
        return len(ring.take(PAGE)[0])
    finally:
        uprobes.close()
        program.close()
        os.close(code)
