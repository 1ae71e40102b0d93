"""Inside gdb: make the next runs of a bottom half happen on a vCPU thread, or on the main one.

Onto a vCPU thread: the main thread is held where it has dropped the BQL, before it polls and
then dispatches, until whoever got the BQL has taken the bottom half off its list.
Onto the main thread: it has had the BQL since the schedule, so that no vCPU thread is inside
aio_poll(); from where it is about to drop the BQL until it runs the bottom half, all others stand
still.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import gdb

from qtrace.gdb.inside.stops import Channel, ContextChosen, Plan, Stop, go_on
from qtrace.machine.unstoppable import unstoppable
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.aio.walk import AioReader

LOOK_EVERY_S = 0.0001


class Schedule(ContextChosen):
    """The bottom half is about to be scheduled."""

    def __init__(self, chosen: dict[str, Any], steering: Steering) -> None:
        super().__init__(chosen)
        self._steering = steering

    def reached(self, tid: int) -> bool:
        self._steering.scheduled(self.context())
        return False


class Steering(Plan):
    """Common to both ways.

    Config: ``schedules`` (where the context is chosen), ``unlock`` (where the main loop drops
    the BQL), ``run`` (just inside the callback), ``callback``, ``layout``, ``limit_s`` (the
    longest hold), ``count`` (of runs on the thread that is wanted).
    """

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._reader = AioReader(self.target.memory, Layout(**config["layout"]))
        self._ctx = 0
        self._runs = 0
        self.held_ms = 0.0
        self.limit = False

    def arm(self) -> None:
        self.main_loop = MainLoop(self.config["unlock"], self)
        self.stops += [Schedule(chosen, self) for chosen in self.config["schedules"]]
        self.stops += [self.main_loop, Run(self.config["run"], self)]

    def scheduled(self, ctx: int) -> None:
        """The bottom half is about to go into ``ctx``."""
        if not self.ending and self._runs < self.config["count"]:
            self._ctx, self.held_ms, self.limit = ctx, 0.0, False
            self.main_loop.enabled = True

    def unlocks(self) -> bool:
        """The main loop drops the BQL and the bottom half waits; True stops everything."""
        raise NotImplementedError

    def ran(self, tid: int) -> bool:
        """The bottom half runs; True stops everything."""
        raise NotImplementedError

    def pending(self) -> bool:
        """Whether the bottom half waits. What is being changed is looked at again."""
        while True:
            try:
                halves = self._reader.bottom_halves(self._ctx)
            except Torn:
                continue
            return any(half.cb == self.config["callback"] for half in halves)

    def tell(self, tid: int) -> None:
        """A run that was to be steered: say how it went."""
        self.main_loop.enabled = False
        if not self._ctx:
            return
        self._runs += (tid == self.target.pid) is (self.config["kind"] == "main")
        facts, raw = self.capture(tid)
        run = {"kind": "run", "ctx": self._ctx, "held_ms": self.held_ms, "limit": self.limit}
        self.channel.send({**run, **facts}, raw)
        self._ctx = 0


class Run(Stop):
    """Just inside the callback."""

    def __init__(self, address: int, steering: Steering) -> None:
        super().__init__(address)
        self._steering = steering

    def reached(self, tid: int) -> bool:
        return self._steering.ran(tid)


class MainLoop(Stop):
    """Where the main loop drops the BQL. It exists only while a bottom half waits."""

    def __init__(self, address: int, steering: Steering) -> None:
        super().__init__(address)
        self._steering = steering
        self.enabled = False

    def reached(self, tid: int) -> bool:
        return tid == self._steering.target.pid and self._steering.unlocks()


class ToVcpu(Steering):
    """Config, beside the above: ``unlock_byte``, what the file has at ``unlock``."""

    def unlocks(self) -> bool:
        """The main thread, without the BQL, waits here; all others run on."""
        began = time.monotonic()
        # Should gdb be killed now, the main thread goes on from here: over its own code.
        self.target.write(self.config["unlock"], bytes([self.config["unlock_byte"]]))
        deadline = began + self.config["limit_s"]
        while self.pending() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        self.held_ms = (time.monotonic() - began) * 1000
        self.limit = time.monotonic() >= deadline
        self.main_loop.enabled = False
        return False

    def ran(self, tid: int) -> bool:
        self.tell(tid)
        return False


class ToMain(Steering):
    """All stop where ``unlocks`` and ``ran`` say True; ``stopped`` then lets on whom it may."""

    def arm(self) -> None:
        super().arm()
        self._held_since = 0.0

    def unlocks(self) -> bool:
        """Where a thread does not stop, gdb would hold the others until it does."""
        self.limit = bool(unstoppable(self.target.pid))
        return not self.limit

    def ran(self, tid: int) -> bool:
        if self._held_since:
            return True
        self.tell(tid)
        return False

    def stopped(self, event: gdb.StopEvent) -> None:
        """At the unlock, at the run, or because it takes too long."""
        signalled = getattr(event, "stop_signal", "")
        if signalled and signalled != "SIGURG":
            self._release()
            super().stopped(event)
            return
        if signalled:
            # Whoever the main thread waits for goes on. It has the BQL, or else this failed.
            self.limit = self.limit or bool(self._held_since)
            self._release()
        elif self._held_since:
            self._release()
            self.tell(gdb.selected_thread().ptid[1])
        else:
            self._hold()
        gdb.post_event(go_on)

    def _hold(self) -> None:
        """Only the selected thread, the main one, runs on."""
        self._held_since = time.monotonic()
        self.main_loop.enabled = False
        gdb.execute("set scheduler-locking on")
        self._timer = threading.Timer(self.config["limit_s"], self._too_long)
        self._timer.daemon = True
        self._timer.start()

    def _too_long(self) -> None:
        # gdb itself may not be called from here. SIGURG stops the target for gdb only.
        os.kill(self.target.pid, signal.SIGURG)

    def _release(self) -> None:
        if self._held_since:
            self.held_ms = (time.monotonic() - self._held_since) * 1000
            self._held_since = 0.0
            self._timer.cancel()
            gdb.execute("set scheduler-locking off")


KINDS: dict[str, type[Plan]] = {"vcpu": ToVcpu, "main": ToMain}
