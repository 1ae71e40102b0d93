"""How long bottom halves take in those QEMUs of a host of which it was asked (``--stats``)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fnmatch import fnmatchcase

from qtrace.binary.module import Module, ParsedFile
from qtrace.knowledge import SNAPSHOT_JOBS
from qtrace.monitor.labels import OTHER
from qtrace.monitor.state import BottomHalfTimes
from qtrace.process.process import Process
from qtrace.record.all_events.sums import Sum, Sums
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.sites.all_plan import check_all_sites
from qtrace.sites.all_sites import plan_all
from qtrace.sites.cross_check import check_debug_info
from qtrace.sites.running_code import check_in_place, refuse_breakpoints
from qtrace.sites.scan_cache import scan_module

# Bottom halves with labels of their own: those that are often run, that I/O waits for, or that hold
# up a main loop. All others are `other`.
NAMES = frozenset({
    "ahci_check_cmd_bh", "bdrv_co_drain_bh_cb", "blk_aio_complete_bh", "co_schedule_bh_cb",
    "do_qmp_dispatch_bh", "dummy_bh_cb", "ide_trim_bh_cb", "job_exit", "notify_event_cb",
    "nvme_process_completion_bh", "qemu_laio_completion_bh", "qemu_luring_completion_bh",
    "thread_pool_completion_bh", "virtio_net_tx_bh", *SNAPSHOT_JOBS,
})  # fmt: skip
LONGEST_NAME = 64
# Programs in the kernel that are kept although no QEMU of their build runs.
KEPT_BUILDS = 4


class VmSums:
    """Of all QEMUs whose names match; one program and one set of maps for each build.

    Args:
        globs: of guests' names.
        waits: how long they have waited, too.
    """

    def __init__(self, globs: Sequence[str], *, waits: bool = True) -> None:
        self._globs, self._waits = tuple(globs), waits
        self._lock = threading.Lock()
        # A program is loaded once, however many begin at the same time.
        self._loading = threading.Lock()
        self._sums: dict[ParsedFile, Sums] = {}
        self._modules: dict[int, Module] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._known: dict[int, list[Sum]] = {}
        # Of programs that are no more.
        self._lost = 0

    def wants(self, name: str) -> bool:
        """Whether they are asked for of a guest."""
        return any(fnmatchcase(name, glob) for glob in self._globs)

    def arm(self, process: Process) -> tuple[list[int], int]:
        """Set the probes of one: the descriptors that keep them, and how many places that are.

        Raises QtraceError: why not; none is set then.
        """
        module = process.binary
        sums = self._load(module)
        check_all_sites(sums.plan, module, process.memory)
        labels = sums.labels
        refuse_breakpoints(process, labels)
        self.forget_pending(process.pid)
        uprobes = Uprobes(process.pid, process.exe, module.elf.offset_of)
        try:
            uprobes.attach_all(sums.probes())
            check_in_place(module, process.memory, labels)
        except BaseException:
            uprobes.close()
            raise
        with self._lock:
            self._modules[process.pid] = module
        return uprobes.hand_over(), len(labels)

    def forget_pending(self, pid: int) -> None:
        """Nothing probes this process: what has begun there ends unseen."""
        for sums in self._all():
            sums.forget_pending(pid)

    def forget(self, pid: int) -> None:
        """It has ended, or is not to be watched any more."""
        with self._lock:
            known = self._modules.pop(pid, None)
            self._known.pop(pid, None)
            self._names = {key: name for key, name in self._names.items() if key[0] != pid}
        if known is not None:
            for sums in self._all():
                sums.forget(pid)
            self._unload()

    def refresh(self) -> None:
        """Read what is summed by now."""
        known: dict[int, list[Sum]] = {}
        for sums in self._all():
            known |= sums.read()
        with self._lock:
            self._known = {pid: one for pid, one in known.items() if pid in self._modules}

    def times(self, pid: int) -> dict[str, BottomHalfTimes]:
        """What was read last of one QEMU, by the names of ``NAMES``, and ``other``."""
        with self._lock:
            found = self._known.get(pid, ())
            module = self._modules.get(pid)
        times: dict[str, BottomHalfTimes] = {}
        for one in found if module is not None else ():
            assert module is not None
            name = self._name(pid, module, one)
            new = BottomHalfTimes(one.runs, one.waits if self._waits else None)
            times[name] = times[name] + new if name in times else new
        return times

    def lost(self) -> int:
        """Runs and waits that found no room, of all."""
        return self._lost + sum(sums.lost() for sums in self._all())

    def close(self) -> None:
        with self._lock:
            sums, self._sums = self._sums, {}
        for one in sums.values():
            one.close()

    def _all(self) -> list[Sums]:
        with self._lock:
            return list(self._sums.values())

    def _load(self, module: Module) -> Sums:
        with self._loading:
            known = self._sums.get(module.parsed)
            if known is None:
                # Who cancels is not counted.
                plan = plan_all(module)
                scan = scan_module(module)
                check_debug_info(module, plan.layout, scan.context_variables)
                module.static_names = scan.static_names
                known = Sums(plan, waits=self._waits)
                with self._lock:
                    self._sums[module.parsed] = known
            return known

    def _unload(self) -> None:
        with self._loading:
            with self._lock:
                used = {id(module.parsed) for module in self._modules.values()}
                idle = [parsed for parsed in self._sums if id(parsed) not in used]
                closed = [self._sums.pop(parsed) for parsed in idle[:-KEPT_BUILDS]]
            for sums in closed:
                self._lost += sums.lost()
                sums.close()

    def _name(self, pid: int, module: Module, one: Sum) -> str:
        """Read from the file alone: the process may not answer."""
        key = (pid, one.callback)
        if key not in self._names:
            raw = module.elf.read(one.name - module.bias, LONGEST_NAME) if one.name else b""
            name = raw.split(b"\0", 1)[0].decode("ascii", "replace")
            if not name:
                found = module.function_name(one.callback - module.bias)
                name = found[0] if found else ""
            self._names[key] = name if name in NAMES else OTHER
        return self._names[key]
