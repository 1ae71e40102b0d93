"""The process that reads the probes of all QEMUs: it has descriptors, and no right at all.

The looker, which holds the capabilities, loads and arms, and hands over the ring buffers and the
links: with this process the probes go, and with the looker this process. The standard library
only, so that it stays small.

    python -m qtrace.monitor.recorder VERSION SOCKET
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from qtrace.knowledge import PROGRAMS
from qtrace.machine.thread_files import ThreadFiles
from qtrace.monitor.last_events import LastEvents
from qtrace.monitor.messages import HIT, LAST_HIT, LAST_STEP, VERSION, receive, send
from qtrace.monitor.rights import allow_descriptors, give_up_rights
from qtrace.monitor.vm_steps import CommandNames, VmSteps
from qtrace.record.ebpf.record_ring import PAGE, RecordRing

# Steps are no reason to wake: what is counted is told so often.
REPORT_S = 0.5
MOST_NAMES = 100
# So many runs of watched bottom halves are passed on between two reports; of more the number.
MOST_RUNS = 500
READ_BYTES = 1 << 20
# The last events of a QEMU that has ended wait so long for whoever asks for them.
KEPT_S = 60.0
# Who sleeps uninterruptibly for so long is stuck: a slow disk takes less.
STUCK_S, AGAIN_S = 1.0, 0.05

Fields = dict[str, tuple[int, int]]


class Closing:
    """Takes probes off, one QEMU's after the other's.

    To take one off the kernel locks the memory map of every process that runs that program, and
    no process can be started on the host until it has them all (qtrace/host/locked_maps.py). Who
    holds such a lock may sleep for ever. So this waits before, in a read that takes the same lock
    and is in nobody's way, and for threads that sleep uninterruptibly, which may hold what readers
    share: while one QEMU is stuck so, probes stay where they are.

    Args:
        armed: the processes that are probed; what else has a QEMU's name is found here.
    """

    def __init__(self, armed: Callable[[], list[int]]) -> None:
        self._armed = armed
        self._queue: SimpleQueue[list[int]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def close(self, links: list[int]) -> None:
        self._queue.put(links)

    def wait(self) -> None:
        """Until no map of theirs is locked."""
        while asleep := self._asleep():
            until = time.monotonic() + STUCK_S
            while asleep and time.monotonic() < until:
                time.sleep(AGAIN_S)
                now = self._asleep()
                asleep = {tid: turns for tid, turns in asleep.items() if now.get(tid) == turns}
            if not asleep:
                return

    def _asleep(self) -> dict[int, str]:
        """The threads that sleep so, and what changes when one has run; when all have answered."""
        found: dict[int, str] = {}
        armed = set(self._armed())
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):
                if pid in armed or PROGRAMS.match(_read(pid, "comm")):
                    _read(pid, "cmdline")
                    files = ThreadFiles(pid)
                    asleep = [tid for tid in files.tids() if files.letter(tid) == "D"]
                    found |= {tid: files.read(tid, "schedstat") for tid in asleep}
        return found

    def _work(self) -> None:
        while True:
            links = self._queue.get()
            self.wait()
            for fd in links:
                os.close(fd)


class _Vm:
    """One QEMU that is armed.

    Attributes:
        key: which of those that have had its pid.
        steps: of a step's site, by address, what it is.
        runs: addresses where watched bottom halves are run: who runs one is the looker's to say.
        links: descriptors; they are closed when it is forgotten.
    """

    def __init__(
        self, key: str, steps: dict[int, str], runs: list[int], names: CommandNames, span_ns: int
    ) -> None:
        self.key = key
        self.last = LastEvents(span_ns, time.monotonic_ns()) if span_ns else None
        self.ended_s = 0.0
        self.steps = steps
        self.runs = frozenset(runs)
        self.links: list[int] = []
        self.counts = VmSteps(names)


class Recorder:
    """Serves until the looker is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._vms: dict[int, _Vm] = {}
        self._names = CommandNames(MOST_NAMES)
        self._rings: dict[str, RecordRing] = {}
        self._layouts: dict[str, Fields] = {}
        self._runs_left = MOST_RUNS
        self._unsent = 0
        self._span_ns = 0
        # By key, those that have ended.
        self._ended: dict[str, _Vm] = {}
        self.closing = Closing(lambda: list(self._vms))

    def serve(self) -> None:
        first, fds = receive(self._end)
        if not first:
            return
        self._begin(json.loads(first), fds)
        poller = select.poll()
        poller.register(self._end, select.POLLIN)
        for fd in fds:
            poller.register(fd, select.POLLIN)
        due = time.monotonic()
        while True:
            wait_s = max(0.0, due - time.monotonic())
            ready = [fd for fd, _events in poller.poll(wait_s * 1000)]
            if self._end.fileno() in ready and not self._take():
                return
            self._read()
            if time.monotonic() >= due:
                due = time.monotonic() + REPORT_S
                self._report()

    def _begin(self, message: dict[str, Any], fds: list[int]) -> None:
        self._span_ns = message["last_ns"]
        for (name, size), fd in zip(message["rings"].items(), fds, strict=False):
            self._rings[name] = RecordRing(fd, size // PAGE)
        self._layouts = {
            ring: {name: (at, size) for name, (at, size) in fields.items()}
            for ring, fields in message["layouts"].items()
        }

    def _take(self) -> bool:
        """A message of the looker's; whether it is still there."""
        data, fds = receive(self._end)
        if not data:
            return False
        message = json.loads(data)
        pid, key = message["pid"], message["key"]
        vm = self._vms.get(pid)
        if message["what"] == "last":
            # Hits of its last moments may wait in the ring buffers.
            self._read()
            self._tell_last(pid, key)
        elif message["what"] == "vm":
            if vm is not None:
                self._forget(self._vms.pop(pid))
            steps = {int(address): name for address, name in message["steps"].items()}
            self._vms[pid] = _Vm(key, steps, message["runs"], self._names, self._span_ns)
        elif vm is None or vm.key != key:
            # It has ended meanwhile, and its pid is another's.
            self.closing.close(fds)
        elif message["what"] == "links":
            vm.links += fds
        elif message["what"] == "gone":
            vm.counts.gone = message["status"]
        elif message["what"] == "forget":
            self._forget(self._vms.pop(pid))
        return True

    def _forget(self, vm: _Vm) -> None:
        if vm.last is not None:
            vm.ended_s = time.monotonic()
            self._ended[vm.key] = vm
        self.closing.close(vm.links)

    def _read(self) -> None:
        for record in self._rings["events"].take(READ_BYTES)[0]:
            self._hit(record)
        while True:
            records, whole = self._rings["steps"].take(READ_BYTES)
            for record in records:
                self._step(record)
            if whole or not records:
                return

    def _hit(self, record: bytes) -> None:
        at = self._layouts["events"]
        vm = self._vms.get(_number(record, at["tgid"]))
        if vm is not None and vm.last is not None:
            vm.last.add(_number(record, at["time_ns"]), False, record)
        # The registers in DWARF's order, the last is the instruction pointer.
        begin, size = at["registers"]
        if vm is None or _number(record, (begin + size - 8, 8)) not in vm.runs:
            return
        if self._runs_left:
            self._runs_left -= 1
            self._end.send(HIT + record)
        else:
            self._unsent += 1

    def _tell_last(self, pid: int, key: str) -> None:
        now = self._vms.get(pid)
        vm = now if now is not None and now.key == key else self._ended.get(key)
        last = vm.last if vm is not None else None
        for _time_ns, is_step, record in last.take(time.monotonic_ns()) if last else ():
            self._end.send((LAST_STEP if is_step else LAST_HIT) + record)
        since_ns = last.since_ns if last else 0
        self._tell({"what": "last", "pid": pid, "key": key, "since_ns": since_ns})

    def _step(self, record: bytes) -> None:
        at = self._layouts["steps"]
        vm = self._vms.get(_number(record, at["tgid"]))
        name = vm.steps.get(_number(record, at["ip"])) if vm else None
        if vm is None or name is None:
            return
        if vm.last is not None:
            vm.last.add(_number(record, at["time_ns"]), True, record)
        vm.counts.step(
            name, _number(record, at["time_ns"]), _number(record, at["sp"]),
            _number(record, at["first"]), _number(record, at["second"]), _text(record, at["text"]),
        )  # fmt: skip

    def _report(self) -> None:
        now_ns = time.monotonic_ns()
        for pid, vm in self._vms.items():
            if vm.counts.changed:
                counts = vm.counts.report(now_ns)
                self._tell({"what": "steps", "pid": pid, "key": vm.key, "counts": counts})
        self._runs_left = MOST_RUNS
        until_s = time.monotonic() - KEPT_S
        self._ended = {key: vm for key, vm in self._ended.items() if vm.ended_s > until_s}
        if self._unsent:
            self._tell({"what": "unsent", "count": self._unsent})
            self._unsent = 0

    def _tell(self, message: dict[str, Any]) -> None:
        send(self._end, message)


def _read(pid: int, file: str) -> str:
    """Raises OSError."""
    with open(f"/proc/{pid}/{file}", "rb") as opened:
        return opened.read().decode("utf-8", "replace")


def _number(record: bytes, field: tuple[int, int]) -> int:
    return int.from_bytes(record[field[0] : field[0] + field[1]], "little")


def _text(record: bytes, field: tuple[int, int]) -> str:
    """A C string; empty where it is longer, or could not be copied."""
    raw = record[field[0] : field[0] + field[1]]
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace") if b"\0" in raw else ""


def main(arguments: list[str]) -> int:
    version, number = arguments
    if int(version) != VERSION:
        return 1
    # Ctrl-C is the looker's, which ends this one.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    allow_descriptors()
    give_up_rights()
    with socket.socket(fileno=int(number)) as end:
        recorder = Recorder(end)
        # In the midst of a message the looker has ended, too.
        with suppress(OSError):
            recorder.serve()
        recorder.closing.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
