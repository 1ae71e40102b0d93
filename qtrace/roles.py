"""Thread roles, and what proves one: a thread's name, or the functions on its stack.

Recorders and the analysis both need them and may not know each other; gdb needs them too, so
that this is the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Role = Literal["main", "vcpu", "iothread", "migration", "worker", "other", ""]

# Names that QEMU gives its threads with debug-threads=on. One thread runs all vCPUs of a
# single-threaded TCG ("ALL CPUs/TCG").
NAMES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(CPU \d+|ALL CPUs)/"), "vcpu"),
    (re.compile(r"IO "), "iothread"),
    (re.compile(r"(live_)?migration|mig/|multifd|bg_snapshot|postcopy|colo"), "migration"),
    (re.compile(r"worker$|thread-pool"), "worker"),
    (re.compile(r"call_rcu|gmain|gdbus|pool-|dconf|vnc_worker|SPICE|iou-"), "other"),
)
# Only a vCPU thread has these (accel/*, system/cpus.c; QEMU 5.2 to 10.2), whatever its name.
VCPU = frozenset({
    "cpu_exec", "kvm_cpu_exec", "hvf_vcpu_exec", "whpx_vcpu_exec", "nvmm_vcpu_exec",
    "tcg_cpu_exec", "tcg_cpus_exec", "qemu_wait_io_event",
    "kvm_vcpu_thread_fn", "mttcg_cpu_thread_fn", "rr_cpu_thread_fn", "dummy_cpu_thread_fn",
    "hvf_cpu_thread_fn", "hax_cpu_thread_fn", "whpx_cpu_thread_fn", "qemu_nvmm_cpu_thread_fn",
    "qemu_kvm_cpu_thread_fn", "qemu_tcg_cpu_thread_fn", "qemu_tcg_rr_cpu_thread_fn",
})  # fmt: skip
MAIN = frozenset({"main_loop_wait", "qemu_main_loop", "main"})
# util/thread-pool.c: the function that each of its threads begins with.
WORKER = frozenset({"worker_thread"})
# iothread.c: likewise of each IOThread.
IOTHREAD = frozenset({"iothread_run"})
MIGRATION = frozenset({"migration_thread", "bg_migration_thread", "qemu_savevm_state_iterate"})


def role_of_name(name: str) -> Role | None:
    """The role that a thread's name tells, None for a name that tells nothing."""
    return next((role for pattern, role in NAMES if pattern.match(name)), None)


def role_of_functions(names: Iterable[str]) -> Role:
    """The role that the functions on a stack prove (names without offsets); empty for none."""
    on_stack = frozenset(names)
    if on_stack & VCPU:
        return "vcpu"
    if on_stack & MAIN:
        return "main"
    if on_stack & MIGRATION:
        return "migration"
    if on_stack & IOTHREAD:
        return "iothread"
    return "worker" if on_stack & WORKER else ""
