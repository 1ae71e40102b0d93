"""Whether eBPF recording works here: the BPF programs, and one probe from end to end."""

from __future__ import annotations

import os

from qtrace.errors import CodeMismatch, RecorderUnavailable
from qtrace.host.capabilities import ROOT, Check, Need
from qtrace.host.own_function import OwnFunction
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
        hits = _hits_of_own_calls()
    except (RecorderUnavailable, CodeMismatch) as error:
        return Check(name, "missing", error.message, error.remedy)
    except OSError as error:
        return Check(name, "missing", f"no probe can be set: {error.strerror}", ROOT)
    if hits != 2:
        return Check(
            name,
            "missing",
            f"attached, but of two hits in two threads {hits} came",
            "use a kernel with CONFIG_UPROBE_EVENTS=y, outside a container",
        )
    return Check(name, "ok", "loaded, attached and hit")


def _hits_of_own_calls() -> int:
    """Probe a function of our own, call it once here and once in another thread, and count."""
    function = OwnFunction()
    program = load_watch(ring_pages=1, step_ring_pages=1)
    uprobes = Uprobes(os.getpid(), function.path, lambda offset: offset)
    try:
        ring = RecordRing(program.maps["steps"], pages=1)
        uprobes.attach(program.functions["on_step"], {0: "the doctor's own function"})
        function.call()
        function.call_in_thread()
        return len(ring.take(PAGE)[0])
    finally:
        uprobes.close()
        program.close()
        function.close()
