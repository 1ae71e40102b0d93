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

from qtrace.host import locked_memory
from qtrace.host.bpf_syscall import (
    MAP_CREATE,
    MAP_TYPE_RINGBUF,
    SMALLEST_PROGRAM,
    SYSCALL,
    bpf,
    has_seccomp_filter,
    load_program,
)  # fmt: skip
from qtrace.host.pid_namespace import require_proc
from qtrace.host.privileges import CAPABILITIES, OUTSIDE, in_user_namespace
from qtrace.host.uprobe_links import links_work
from qtrace.machine import architectures

State = Literal["ok", "missing", "untried"]
Need = Literal["ebpf", "gdb", "target", "others", "compile"]

ROOT = "run qtrace as root (sudo qtrace ...)"
# What those of --all and what belongs to them may take (qtrace/record/all_events/all_program.py).
BUFFERS = 128 << 20
# Some older kernels want CAP_SYS_ADMIN all the same, which trying tells.
EBPF_RIGHTS = (frozenset({"CAP_BPF", "CAP_PERFMON"}), frozenset({"CAP_SYS_ADMIN"}))
NEEDS_RIGHTS = "eBPF needs CAP_BPF and CAP_PERFMON, or root"
UPROBE_PMU = Path("/sys/bus/event_source/devices/uprobe/type")


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement.

    Attributes:
        name: what it is, one or two words.
        state: ``ok``, ``missing``, or ``untried`` where an earlier one is missing.
        detail: what was found, one line.
        remedy: the command that mends it, empty when ``ok``.
        needed_for: what cannot work without it, ``others`` being QEMUs of other users; empty for
            what is good to know.
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
    """Everything about this host that needs no recorder to be loaded. Raises NoProc."""
    require_proc()
    return [
        check_processor(),
        *check_capabilities(),
        check_lockdown(),
        check_bpf_syscall(),
        check_ring_buffer(),
        check_uprobes(),
        check_seccomp(),
        check_sysctl("bpf restriction", "kernel/unprivileged_bpf_disabled", "CAP_BPF"),
        check_sysctl("perf restriction", "kernel/perf_event_paranoid", "CAP_PERFMON"),
        check_hidepid(),
        check_ptrace_scope(),
        check_gdb(),
    ]


def check_capabilities() -> list[Check]:
    """The user, and one check per capability that this kernel asks for.

    A link (qtrace/host/uprobe_links.py) needs none but those to load programs, and to look into the
    process. A perf event needs CAP_SYS_ADMIN since the fix of CVE-2025-38466 (July 2025, in all
    stable kernels), which stands in for CAP_BPF and CAP_PERFMON. For QEMUs of one's own user the
    two that open other users' processes are not needed.
    """
    held, own = capabilities(), in_user_namespace()
    uses = _uses()
    checks = [Check("user", "ok", f"uid {os.geteuid()}", needed_for=())]
    for name, (use, needed_for) in uses.items():
        if name in held and not own:
            checks.append(Check(name, "ok", use, needed_for=needed_for))
        elif name in ("CAP_BPF", "CAP_PERFMON") and "CAP_SYS_ADMIN" in held and not own:
            checks.append(Check(name, "ok", f"{use} (by CAP_SYS_ADMIN)", needed_for=needed_for))
        elif name in held or (own and "CAP_SYS_ADMIN" in held):
            detail = f"held in a user namespace of its own only, which does not count: {use}"
            checks.append(Check(name, "missing", detail, OUTSIDE, needed_for))
        else:
            checks.append(Check(name, "missing", f"not held: {use}", _grant(), needed_for))
    return checks


def _uses() -> dict[str, tuple[str, tuple[Need, ...]]]:
    """What this kernel wants each capability for."""
    uses: dict[str, tuple[str, tuple[Need, ...]]] = {
        "CAP_BPF": ("load BPF programs", ("ebpf",)),
        "CAP_PERFMON": ("let BPF programs read memory", ("ebpf",)),
        "CAP_SYS_PTRACE": ("look into other users' processes", ("others",)),
        "CAP_DAC_READ_SEARCH": ("read other users' memory", ("others",)),
    }
    if links_work():
        return uses
    if locked_memory.counts_here() and (locked_memory.limit() or BUFFERS) < BUFFERS:
        buffers = "have ring buffers before Linux 5.11, or ulimit -l unlimited"
        uses = {"CAP_SYS_RESOURCE": (buffers, ("ebpf",)), **uses}
    return {"CAP_SYS_ADMIN": ("set uprobes, as there are no links for them", ("ebpf",)), **uses}


def _grant() -> str:
    return f"{ROOT}, or with {', '.join(_uses())}"


def capabilities() -> frozenset[str]:
    """Those of ``CAPABILITIES`` in this process's effective set."""
    match = re.search(r"^CapEff:\s*(\w+)", _own_status(), re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def has_ebpf_rights() -> bool:
    """Whether this process holds what eBPF takes."""
    return any(rights <= capabilities() for rights in EBPF_RIGHTS)


def check_processor() -> Check:
    """Whether live processes are looked at, and recorded, on hosts of this kind."""
    name, here, tried = "processor", architectures.HOST.name, architectures.TRIED.name
    if here == tried:
        return Check(name, "ok", here, needed_for=("ebpf", "gdb"))
    return Check(
        name, "missing", f"{here}: live processes are recorded and looked at on {tried} alone",
        "qtrace scan reads a binary, qtrace inspect --core a core (gcore PID)", ("ebpf", "gdb"),
    )  # fmt: skip


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


def check_ebpf() -> Check | None:
    """The first requirement of eBPF that this host lacks, whatever the target; None for none.

    What can be tried is tried: the capabilities are named where something was refused.
    """
    tried = [check_lockdown(), check_bpf_syscall(), check_ring_buffer(), check_uprobes()]
    if not all(check.ok for check in tried) or not links_work():
        tried = [*check_capabilities(), *tried]
    lacking = [check for check in tried if not check.ok and "ebpf" in check.needed_for]
    return lacking[0] if lacking else None


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
    detail = "a filter is active (a container's?)" if has_seccomp_filter() else "no filter"
    return Check("seccomp", "ok", detail, needed_for=())


def check_sysctl(name: str, path: str, capability: str) -> Check:
    """One that shuts out whoever has not the capability, which is asked for anyway."""
    try:
        value = Path("/proc/sys", path).read_text().strip()
    except OSError:
        return Check(name, "ok", "not limited by this kernel", needed_for=())
    detail = f"{path.replace('/', '.')} = {value}, which {capability} lifts"
    return Check(name, "ok", detail, needed_for=())


def check_hidepid() -> Check:
    """/proc that hides other users' processes; CAP_SYS_PTRACE lifts it, but for hidepid=4."""
    name = "hidepid"
    mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    options = next((line for line in reversed(mounts) if line.split()[4] == "/proc"), "")
    match = re.search(r"\bhidepid=(\w+)", options)
    if match is None or match[1] in ("0", "off"):
        return Check(name, "ok", "/proc shows every process", needed_for=("others",))
    detail = f"/proc is mounted with hidepid={match[1]}"
    if "CAP_SYS_PTRACE" in capabilities():
        return Check(name, "ok", f"{detail}, which CAP_SYS_PTRACE lifts", needed_for=("others",))
    remedy = f"{ROOT}, or with CAP_SYS_PTRACE"
    return Check(name, "missing", f"{detail}: other users' QEMUs are not seen", remedy, ("others",))


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
    if code == errno.EPERM and in_user_namespace():
        return OUTSIDE
    if code == errno.EPERM and {"CAP_BPF", "CAP_SYS_ADMIN"} & capabilities():
        # Held but refused: a container's seccomp filter.
        return "leave the container, or start it with --privileged"
    return _grant()


def _own_status() -> str:
    return Path("/proc/self/status").read_text(errors="replace")
