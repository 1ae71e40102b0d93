"""One QEMU, looked at again and again by a thread of its own.

Whoever waits for the kernel's answer about one QEMU, perhaps for ever, keeps no other from being
looked at.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qtrace.errors import HasEnded, NoSuchProcess, QtraceError
from qtrace.host.unanswered import PATIENCE_S, Wait
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_proof import RequestFinding
from qtrace.inspection.watch import Watch, Watched
from qtrace.monitor.happenings import Happened
from qtrace.monitor.state import StuckLoop, VmState
from qtrace.monitor.vm_probes import VmProbes
from qtrace.process.process import Process, unless_it_ends
from qtrace.qemu.aio.findings import STUCK, Finding
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import is_unmoved, waits_for_big_lock
from qtrace.qemu.block.requests import InFlight
from qtrace.record.target_end import Watcher

UNKNOWN = "unknown"
LOOPS = ("main", "iothread")
# What hangs, looks have proven after so long: two seconds apart where
# somebody moves whom it waits for (qtrace/qemu/aio/findings.py).
PROVEN_AFTER_S = 3.0
HURRY_S = 0.5
# So long, and for so many looks, a look at a QEMU whose loops sleep takes a glance only: whether
# they still do. A request that is in flight there, or a wait for the BQL, is seen so much later.
CALM_S, CALM_PACES = 3.0, 3


class WatchedVm:
    """From ``begin()``, or in ``work()``, on it is looked at; ``state`` is what is known.

    Attributes:
        end: how the process ends; None where it had ended before.
        refused: why it cannot be looked into, empty while it can.
    """

    def __init__(
        self, pid: int, vm: str, program: str, every_s: float, probes: VmProbes | None = None
    ) -> None:
        self.pid = pid
        self.probes = probes
        self.refused = ""
        self.end: Watcher | None = None
        with suppress(ProcessLookupError):
            self.end = Watcher(pid)
        self._gone = self.end is None
        self._state = VmState(vm, program, "", "", found_at=time.monotonic())
        self._every_s = every_s
        self._wait: Wait | None = None
        self._news: list[Finding | RequestFinding] = []
        self._known: set[tuple[str, int]] = set()
        # The threads that wait for the BQL, as they were when they began to.
        self._waiters: dict[int, tuple[Thread, int]] = {}
        self._since_ns: dict[tuple[str, int], int] = {}
        self._stopped = False
        self._first_at = 0.0
        # Between two looks nothing is asked.
        self._rests = False
        self._wake = threading.Event()
        if probes is not None:
            probes.wake = self._wake.set

    def begin(self) -> None:
        """Do its work in a thread of its own."""
        threading.Thread(target=self.work, daemon=True, name=f"vm-{self.pid}").start()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._gone or (self.end is not None and self.end.ended())

    @property
    def state(self) -> VmState:
        """What is known now."""
        known = self._state
        if self._wait is not None and not self._rests:
            path, waited_s = self._wait.unanswered()
            if path and waited_s >= PATIENCE_S:
                known = replace(known, unreadable_s=waited_s)
        return self.probes.add_to(known) if self.probes else known

    def is_seen(self, over_s: float) -> bool:
        """Whether looks over so long have shown what they can: that a hang is proven takes some,
        and on a crowded host each takes its time. True of one that cannot be looked at."""
        state = self.state
        if self.ended or self.refused or state.unreadable_s:
            return True
        return bool(state.looks) and state.seen_at - self._first_at >= over_s

    @property
    def name(self) -> str:
        """Its label."""
        return self._state.vm

    def news(self) -> list[Finding | RequestFinding | Happened]:
        """The findings that have come up since this was asked last."""
        news, self._news = self._news, []
        return [*news, *(self.probes.news() if self.probes else ())]

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self.probes is not None:
            self.probes.close()

    def work(self) -> None:
        """Arm it, and look at it until it ends."""
        try:
            name_thread(f"vm-{self.pid}")
            self._wait = Wait(threading.get_native_id())
            process = Process(self.pid)
            if self.probes is not None:
                self.probes.arm(process)
            qemu = LiveQemu(process, self.probes.scan if self.probes else None)
            if self.probes is not None:
                self.probes.begin(qemu)
            calm_s = max(CALM_S, CALM_PACES * self._every_s)
            watch = Watch(Looker(qemu), glances_ns=int(calm_s * 1e9))
            target = watch.looker.qemu.describe()
            self._state = replace(
                self._state, version=str(target["version"]), build_id=str(target["build_id"])
            )
            at = time.monotonic()
            while not self._stopped:
                began = time.monotonic()
                seen = watch.see(time.monotonic_ns())
                self._take(seen, time.monotonic() - began)
                at = max(at + self._every_s, time.monotonic())
                suspects = watch.suspects(seen)
                # What may be a hang is proven by looks that need not be far apart.
                if suspects and at - time.monotonic() > HURRY_S:
                    self._until(time.monotonic() + HURRY_S, process)
                    if any(watch.may_hold(suspect) for suspect in suspects):
                        at = time.monotonic()
                self._until(at, process)
        except (QtraceError, OSError) as error:
            self.refused = _why_not(self.pid, error)
            self._gone = not self.refused
        finally:
            self._wait = None

    def _until(self, at: float, process: Process) -> None:
        """Take what the probes tell meanwhile."""
        while True:
            if self.probes is not None:
                self.probes.take()
            self._rests = True
            woken = self._wake.wait(max(0.0, at - time.monotonic()))
            self._rests = False
            if self._stopped or not woken:
                break
            self._wake.clear()
        if self.probes is not None:
            self.probes.arm(process)

    def _take(self, seen: Watched, took_s: float) -> None:
        look, state = seen.look, self._state
        self._first_at = self._first_at or time.monotonic()
        if seen.glanced:
            self._state = replace(
                state, looks=state.looks + 1, looking_s=state.looking_s + took_s,
                seen_at=time.monotonic(),
            )  # fmt: skip
            return
        kinds = Counter(finding.kind for finding in seen.findings)
        now = {(one.kind, _of(one)): one for one in seen.findings}
        self._news += [one for key, one in now.items() if key not in self._known]
        self._known = set(now)
        self._since_ns = {key: self._since_ns.get(key, look.time_ns) for key in now}
        flying = [*seen.requests.causes, *seen.requests.behind] if seen.requests else []
        stuck = [r for f in seen.findings if isinstance(f, RequestFinding) for r in f.requests]
        self._state = replace(
            state,
            stuck=tuple(self._stuck(look, list(now.values()))),
            findings=dict(kinds),
            in_flight=_by_driver(flying),
            stuck_requests=_by_driver(stuck),
            bql_wait_s=self._bql_wait_ns(look) / 1e9,
            held=look.held,
            inconclusive=bool(seen.reasons),
            looks=state.looks + 1,
            looking_s=state.looking_s + took_s,
            seen_at=time.monotonic(),
        )

    def _stuck(self, look: Look, findings: Sequence[Finding | RequestFinding]) -> list[StuckLoop]:
        found = []
        for one in findings:
            if isinstance(one, Finding) and one.kind == STUCK:
                seen_ns = look.time_ns - self._since_ns[(one.kind, _of(one))]
                lasted_ns = max(one.at_least_ns, seen_ns)
                # While another thread keeps the BQL it is the main loop that cannot run.
                role = one.thread.role if one.thread.role in LOOPS else "main"
                found.append(StuckLoop(role, one.context.name or "?", lasted_ns / 1e9))
        return found

    def _bql_wait_ns(self, look: Look) -> int:
        """Who has been in one and the same wait since an earlier look."""
        waiters = {}
        for thread in look.threads:
            if waits_for_big_lock(look, thread):
                before, since_ns = self._waiters.get(thread.tid, (thread, look.time_ns))
                same = is_unmoved(before, thread)
                waiters[thread.tid] = (before, since_ns) if same else (thread, look.time_ns)
        self._waiters = waiters
        return max((look.time_ns - since_ns for _, since_ns in waiters.values()), default=0)


def name_thread(name: str) -> None:
    """For ps and top; at most 15 characters."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)


def _why_not(pid: int, error: QtraceError | OSError) -> str:
    """Why it cannot be looked into; empty where it has ended, which makes all kinds of things
    fail."""
    try:
        with unless_it_ends(pid):
            raise error
    except (NoSuchProcess, HasEnded):
        return ""
    except QtraceError as why:
        return why.message
    except OSError as why:
        return str(why)


def _of(finding: Finding | RequestFinding) -> int:
    """What tells two findings of a kind apart: the thread, or who has the requests."""
    if isinstance(finding, Finding):
        return finding.thread.tid
    return finding.whom.peers[0].pid if finding.whom.peers else 0


def _by_driver(requests: Sequence[InFlight]) -> dict[str, int]:
    return dict(Counter(one.node.driver if one.node else UNKNOWN for one in requests))
