"""Thread roles, and what tells one: decided here and nowhere else.

Recorders, looks and the analysis need them and may not know each other; gdb needs them too, so
that this is the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Role = Literal["main", "vcpu", "iothread", "migration", "worker", "other", ""]
# In which people are shown them.
ORDER: tuple[Role, ...] = ("main", "iothread", "vcpu", "migration", "worker", "other", "")

# Names that QEMU gives its threads with debug-threads=on. One thread runs all vCPUs of a
# single-threaded TCG ("ALL CPUs/TCG").
NAMES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(CPU \d+|ALL CPUs)/"), "vcpu"),
    (re.compile(r"IO "), "iothread"),
    (re.compile(r"(live_)?migration|mig/|multifd|bg_snapshot|postcopy|colo"), "migration"),
    (re.compile(r"worker$|thread-pool"), "worker"),
    (re.compile(r"call_rcu|gmain|gdbus|pool-|dconf|vnc_worker|SPICE|iou-"), "other"),
)
# Only a vCPU thread has these (accel/*, system/cpus.c; QEMU 5.2 to 11.1), whatever its name.
VCPU = frozenset({
    "cpu_exec", "kvm_cpu_exec", "hvf_vcpu_exec", "whpx_vcpu_exec", "nvmm_vcpu_exec",
    "tcg_cpu_exec", "tcg_cpus_exec", "qemu_wait_io_event", "qemu_process_cpu_events",
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


def role_of_stack(frames: Iterable[str]) -> Role:
    """The role that the functions on a stack prove (``name`` or ``name+0x..``); empty for none."""
    on_stack = frozenset(frame.split("+0x")[0] for frame in frames)
    if on_stack & VCPU:
        return "vcpu"
    if on_stack & MAIN:
        return "main"
    if on_stack & MIGRATION:
        return "migration"
    if on_stack & IOTHREAD:
        return "iothread"
    return "worker" if on_stack & WORKER else ""


class Roles:
    """The roles of one process's threads. Of each the first of these that there is decides:

    1. its tid is the process's id: the main thread;
    2. QMP tells it (query-cpus-fast, query-iothreads);
    3. it was seen doing what only one kind does: KVM_RUN, functions on its stack;
    4. it owns an AioContext: an IOThread;
    5. its name, unless that is the main thread's (which may be anything: ``-name process=``) or
       what was seen speaks against it;
    6. nothing: ``other``.

    The first four are proofs and are kept, those of a thread that has ended too (rows about it
    may be made later), until its tid is another thread's. A name is not: a new thread has its
    maker's until it takes its own, so that a fresh worker may be called ``CPU 0/KVM``, and
    names of their own exist only with ``-name debug-threads=on`` (still opt-in in QEMU 10.2).

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._proven: dict[int, Role] = {pid: "main"}
        self._iothread_ids: dict[int, str] = {}
        self._ended: set[int] = set()
        self._main_name = ""

    @property
    def proven(self) -> Mapping[int, Role]:
        """Roles that are proven, by tid."""
        return self._proven

    def tell(self, told: Mapping[int, tuple[Role, str]]) -> None:
        """Take what QMP tells: role and name (an IOThread's id) by tid."""
        for tid, (role, name) in told.items():
            self._proven[tid] = "main" if tid == self._pid else role
            if role == "iothread":
                self._iothread_ids[tid] = name

    def present(self, names: Mapping[int, str]) -> None:
        """Take note of which threads there are now, and of the main thread's name."""
        for tid in self._ended.intersection(names):
            # The kernel gives the ids of threads that have ended to new ones.
            self._proven.pop(tid, None)
            self._iothread_ids.pop(tid, None)
        self._ended = {tid for tid in self._proven if tid not in names}
        self._main_name = names.get(self._pid, "")

    def prove(self, tid: int, role: Role) -> Role:
        """Keep what a thread was seen to be; its role now, which may be of a better proof."""
        return self._proven.setdefault(tid, role)

    def is_open(self, tid: int, name: str) -> bool:
        """Whether nothing is proven of a thread and its name tells nothing."""
        return tid not in self._proven and self._named(name) is None

    def role(
        self,
        tid: int,
        name: str,
        frames: Iterable[str] = (),
        *,
        whole: bool = False,
        owns_context: bool | None = None,
    ) -> Role:
        """The role of a thread.

        Args:
            name: the one that it has now.
            frames: of a stack of its own, as ``name`` or ``name+0x..``.
            whole: they reach the thread's first function.
            owns_context: an AioContext of an IOThread is its own; None where that is not known.
        """
        if tid in self._proven:
            return self._proven[tid]
        seen = role_of_stack(frames) or ("iothread" if owns_context else "")
        if seen:
            return self.prove(tid, seen)
        named = self._named(name)
        # A vCPU thread's whole stack shows its loop; an IOThread has a context.
        disproved = (named == "vcpu" and whole) or (named == "iothread" and owns_context is False)
        return "other" if named is None or disproved else named

    def iothread_id(self, tid: int, name: str) -> str:
        """An IOThread's id: from QMP, from its thread's name, else its tid."""
        return self._iothread_ids.get(tid) or (name[3:] if name.startswith("IO ") else str(tid))

    def _named(self, name: str) -> Role | None:
        return role_of_name(name) if name != self._main_name else None
