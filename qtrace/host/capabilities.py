"""What this host allows: capabilities, the BPF system call, uprobes, ptrace, gdb.

A check is data; rendering it is the command line's. Whatever can be tried is tried: a
version number or a configuration file says less than the system call itself.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qtrace.host.bpf_syscall import (
    MAP_CREATE,
    MAP_TYPE_RINGBUF,
    SMALLEST_PROGRAM,
    SYSCALL,
    bpf,
    load_program,
)  # fmt: skip

State = Literal["ok", "missing", "untried"]
Need = Literal["ebpf", "gdb", "target"]

ROOT = "run qtrace as root (sudo qtrace ...)"
# linux/capability.h
CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
UPROBE_PMU = Path("/sys/bus/event_source/devices/uprobe/type")


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement.

    Attributes:
        name: what it is, one or two words.
        state: ``ok``, ``missing``, or ``untried`` where an earlier one is missing.
        detail: what was found, one line.
        remedy: the command that mends it, empty when ``ok``.
        needed_for: what cannot work without it; empty for what is good to know.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
    needed_for: tuple[Need, ...] = ("ebpf",)

    @property
    def ok(self) -> bool:
        return self.state == "ok"


def check_host() -> list[Check]:
    """Everything about this host that needs no recorder to be loaded."""
    return [
        *check_capabilities(),
        check_lockdown(),
        check_bpf_syscall(),
        check_ring_buffer(),
        check_uprobes(),
        check_seccomp(),
        check_ptrace_scope(),
        check_gdb(),
    ]


def check_capabilities() -> list[Check]:
    """The user, and one check per capability.

    CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON, and not the other way round:
    uprobes need it again since the fix of CVE-2025-38466 (July 2025, in all stable
    kernels), and so does following /proc/PID/map_files.
    """
    held = capabilities()
    uses: dict[str, tuple[str, tuple[Need, ...]]] = {
        "CAP_SYS_ADMIN": ("set uprobes, open the target's mapped files", ("ebpf",)),
        "CAP_SYS_PTRACE": ("read another process's memory", ("ebpf", "gdb")),
        "CAP_BPF": ("load BPF programs", ("ebpf",)),
        "CAP_PERFMON": ("let BPF programs read memory", ("ebpf",)),
    }
    checks = [Check("user", "ok", f"uid {os.geteuid()}", needed_for=())]
    for name, (use, needed_for) in uses.items():
        if name in held:
            checks.append(Check(name, "ok", use, needed_for=needed_for))
        elif name in ("CAP_BPF", "CAP_PERFMON") and "CAP_SYS_ADMIN" in held:
            checks.append(Check(name, "ok", f"{use} (by CAP_SYS_ADMIN)", needed_for=needed_for))
        else:
            checks.append(Check(name, "missing", f"not held: {use}", ROOT, needed_for))
    return checks


def capabilities() -> frozenset[str]:
    """Those of ``CAPABILITIES`` in this process's effective set."""
    match = re.search(r"^CapEff:\s*(\w+)", _own_status(), re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def check_lockdown() -> Check:
    """Lockdown "confidentiality" forbids BPF to read memory; "integrity" does not."""
    path = Path("/sys/kernel/security/lockdown")
    try:
        match = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return Check("kernel lockdown", "ok", "not active here")
    mode = match[1] if match else "unknown"
    if mode == "confidentiality":
        return Check(
            "kernel lockdown",
            "missing",
            "mode confidentiality: BPF may not read memory",
            "boot with lockdown=integrity on the kernel's command line",
        )
    return Check("kernel lockdown", "ok", f"mode {mode}")


def check_bpf_syscall() -> Check:
    """Loads the smallest program there is: r0 = 0; exit."""
    name = "BPF system call"
    try:
        os.close(load_program(SMALLEST_PROGRAM))
    except OSError as error:
        reason = f"loading a program: {error.strerror}"
        return Check(name, "missing", reason, _bpf_remedy(error.errno or 0))
    return Check(name, "ok", "a program was loaded")


def check_ring_buffer() -> Check:
    """Creates a ring buffer of one page (Linux 5.8)."""
    name = "BPF ring buffer"
    page = os.sysconf("SC_PAGE_SIZE")
    # union bpf_attr: type, key size, value size, number of entries.
    try:
        os.close(bpf(MAP_CREATE, struct.pack("<4I", MAP_TYPE_RINGBUF, 0, 0, page)))
    except OSError as error:
        code = error.errno or 0
        remedy = "use a kernel of 5.8 or later" if code == errno.EINVAL else _bpf_remedy(code)
        found = f"kernel {platform.release()}: {error.strerror}"
        return Check(name, "missing", found, remedy)
    return Check(name, "ok", f"kernel {platform.release()}")


def check_uprobes() -> Check:
    if UPROBE_PMU.exists():
        return Check("uprobes", "ok", "the kernel has them")
    return Check(
        "uprobes",
        "missing",
        f"no {UPROBE_PMU.parent}",
        "use a kernel with CONFIG_UPROBE_EVENTS=y and mount sysfs on /sys",
    )


def check_seccomp() -> Check:
    """A container's filter may forbid bpf(2); whether it does, check_bpf_syscall() knows."""
    match = re.search(r"^Seccomp:\s*(\d)", _own_status(), re.MULTILINE)
    filtered = match is not None and match[1] != "0"
    detail = "a filter is active (a container's?)" if filtered else "no filter"
    return Check("seccomp", "ok", detail, needed_for=())


def check_ptrace_scope() -> Check:
    """Yama's limit on whom gdb may attach to; CAP_SYS_PTRACE lifts 1 and 2, nothing lifts 3."""
    name = "ptrace scope"
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return Check(name, "ok", "not limited by this kernel", needed_for=("gdb",))
    if scope == 0 or (scope < 3 and "CAP_SYS_PTRACE" in capabilities()):
        return Check(name, "ok", f"kernel.yama.ptrace_scope = {scope}", needed_for=("gdb",))
    remedy = ROOT if scope < 3 else "reboot: ptrace_scope 3 cannot be lowered while running"
    detail = f"kernel.yama.ptrace_scope = {scope}: gdb cannot attach"
    return Check(name, "missing", detail, remedy, ("gdb",))


def check_gdb() -> Check:
    """Runs gdb's own Python, as the gdb recorder does."""
    name, remedy = "gdb with Python", "apt-get install gdb"
    path = shutil.which("gdb")
    if path is None:
        return Check(name, "missing", "gdb is not installed", remedy, ("gdb",))
    command = [path, "-nx", "-q", "-batch", "-ex", "python print('qtrace', gdb.VERSION)"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, "missing", f"{path} does not run: {error}", remedy, ("gdb",))
    match = re.search(r"^qtrace (.+)$", run.stdout, re.MULTILINE)
    if match is None:
        remedy = "apt-get install gdb (gdb-minimal has no Python)"
        return Check(name, "missing", f"{path} has no Python", remedy, ("gdb",))
    return Check(name, "ok", f"{path}, version {match[1]}", needed_for=("gdb",))


def _bpf_remedy(code: int) -> str:
    if code == errno.ENOSYS or platform.machine() not in SYSCALL:
        return "use a kernel with CONFIG_BPF_SYSCALL=y"
    if code == errno.EPERM and {"CAP_BPF", "CAP_SYS_ADMIN"} & capabilities():
        # Held but refused: a container's seccomp filter, or a user namespace of its own.
        return "leave the container, or start it with --privileged"
    return ROOT


def _own_status() -> str:
    return Path("/proc/self/status").read_text(errors="replace")
