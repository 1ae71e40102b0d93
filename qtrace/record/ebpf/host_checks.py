"""Whether eBPF recording works here: bcc, kernel headers, and one probe from end to end."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qtrace.errors import RecorderUnavailable
from qtrace.host.capabilities import ROOT, Check
from qtrace.process.maps import read_maps
from qtrace.record.ebpf.bcc_module import find_bcc, load_bcc
from qtrace.record.ebpf.kernel_headers import find_headers, prepare_headers

PROGRAM = b"""
BPF_ARRAY(hits, u64, 1);
int count(void *registers) { hits.increment(0); return 0; }
"""
UPROBE_ENTRY = 0  # BPF_PROBE_ENTRY of libbcc


def check_recorder(*, try_probe: bool = True) -> list[Check]:
    """bcc and headers; with ``try_probe`` also a probe, as far as the former are there."""
    checks = [check_bcc(), check_headers()]
    if not try_probe or not all(check.ok for check in checks):
        return [*checks, Check("uprobe program", "untried", "needs what is missing above")]
    return [*checks, check_probe()]


def check_bcc() -> Check:
    try:
        module = load_bcc()
        return Check("bcc", "ok", f"{find_bcc()}, version {module.__version__}")
    except RecorderUnavailable as error:
        return Check("bcc", "missing", error.message, error.remedy)


def check_headers() -> Check:
    try:
        return Check("kernel headers", "ok", find_headers().description)
    except RecorderUnavailable as error:
        return Check("kernel headers", "missing", error.message, error.remedy)


def check_probe() -> Check:
    """Compiles and loads a program, attaches it to a libc function of our own, calls that."""
    name = "uprobe program"
    try:
        bcc = load_bcc()
        prepare_headers()
    except RecorderUnavailable as error:
        return Check(name, "missing", error.message, error.remedy)
    messages: list[str] = []
    try:
        with _captured_stderr(messages):
            hits = _hits_of_own_call(bcc)
    # bcc raises Exception itself; what the compiler said tells more.
    except Exception as error:
        said = next((line for line in messages if "error" in line.lower()), str(error))
        return Check(name, "missing", f"does not compile or load: {said.strip()}", ROOT)
    if hits == 0:
        return Check(
            name,
            "missing",
            "attached, but did not fire",
            "use a kernel with CONFIG_UPROBE_EVENTS=y, outside a container",
        )
    return Check(name, "ok", "compiled, loaded, attached and hit")


def _hits_of_own_call(bcc: Any) -> int:
    """Probe libc's getppid() in this process, call it once, and count."""
    address = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value or 0
    libc = next(m for m in read_maps(os.getpid()) if m.start <= address < m.end)
    program = bcc.BPF(text=PROGRAM)
    try:
        # libbcc's own calls, as the recorder's: BPF.detach_uprobe() fails without tracefs.
        fd = bcc.lib.bpf_attach_uprobe(
            program.load_func(b"count", bcc.BPF.KPROBE).fd,
            UPROBE_ENTRY,
            f"qtrace_doctor_{os.getpid()}".encode(),
            os.fsencode(libc.path),
            address - libc.start + libc.offset,
            os.getpid(),
            0,
        )
        if fd < 0:
            raise OSError("the kernel refuses a uprobe")
        try:
            os.getppid()
        finally:
            bcc.lib.bpf_close_perf_event_fd(fd)
        return sum(int(value.value) for value in program[b"hits"].values())
    finally:
        program.cleanup()


@contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """What the compiler inside libbcc writes to file descriptor 2 goes into ``lines``."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
