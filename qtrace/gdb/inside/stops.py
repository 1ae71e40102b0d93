"""What qtrace's own gdb does at the places where it stops QEMU.

Started by ``qtrace.gdb.gdb_session``.

MI only attaches, starts this and detaches. All that happens in between is decided here, inside
gdb, and told to qtrace by messages on a socket; QEMU waits for gdb, never for qtrace.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from typing import Any

import gdb

from qtrace.gdb.inside.pass_over import pass_over
from qtrace.gdb.safety.lifeline import Lifeline
from qtrace.machine.memory import ProcessMemory, read_word

WORD = 0xFFFFFFFFFFFFFFFF
LARGEST_CONFIG = 1 << 20
PAGE = 4096


class Channel:
    """Messages to qtrace: a line of JSON, then bytes. Never waits: what finds no room is lost."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self._socket.recv(LARGEST_CONFIG))
        return config

    def send(self, message: dict[str, Any], raw: bytes = b"") -> bool:
        """Whether there was room for it."""
        try:
            self._socket.send(json.dumps(message).encode() + b"\n" + raw, socket.MSG_DONTWAIT)
        except OSError:
            # Full, or qtrace is gone: then this gdb will soon be told to end.
            return False
        return True


class Target:
    """The process that gdb is attached to: read beside gdb, without stopping anything."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.memory = ProcessMemory(pid)

    def word(self, address: int) -> int:
        """Raises OSError when it cannot be read."""
        word = read_word(self.memory, address)
        if word is None:
            raise OSError(f"no memory at {address:#x}")
        return word

    def write(self, address: int, data: bytes) -> None:
        """Behind gdb's back."""
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as file:
            file.seek(address)
            file.write(data)

    def thread_name(self, tid: int) -> str:
        try:
            with open(f"/proc/{self.pid}/task/{tid}/comm", "rb") as file:
                return file.read().rstrip(b"\n").decode("utf-8", "surrogateescape")
        except OSError:
            return ""


class Stop(gdb.Breakpoint):
    """A place where a thread is stopped for as long as ``reached`` takes.

    The others run on meanwhile. Where the instruction is none that can be passed over, gdb
    steps through it, for which it stops them all for an instant.

    ``effect`` is what the thread is given in place of that instruction; ``reached`` may change
    it.
    """

    effect: dict[str, Any] | None

    def __init__(self, address: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self.silent = True
        self.address = address

    def stop(self) -> bool:
        """gdb calls this; True keeps everything stopped."""
        try:
            tid = gdb.selected_thread().ptid[1]
            self.effect = plan.config["pass_over"].get(str(self.address))
            stays = self.reached(tid)
            if self.effect is not None:
                pass_over(tid, self.effect, plan.target.word, plan.target.write)
            return stays
        except Exception as error:
            # gdb would keep everything stopped. The target may also have died under our hands.
            plan.channel.send({"kind": "error", "text": f"{type(error).__name__}: {error}"})
            return False

    def reached(self, tid: int) -> bool:
        raise NotImplementedError


class ContextChosen(Stop):
    """Where the context that a bottom half will go into can be seen and changed.

    ``chosen``: ``address`` and ``register``, which holds the context; with ``offset`` it points to
    the QEMUBH, where the context lies so far in (``qtrace.sites.experiment_places.Chosen``).
    """

    def __init__(self, chosen: dict[str, Any]) -> None:
        super().__init__(chosen["address"])
        self._register, self._offset = chosen["register"], chosen["offset"]

    def context(self) -> int:
        value = registers((self._register,))[self._register]
        return value if self._offset is None else plan.target.word(value + self._offset)

    def change(self, ctx: int) -> None:
        """Let it go into that one instead."""
        if self._offset is None:
            gdb.execute(f"set ${self._register} = {ctx:#x}")
        else:
            bh = registers((self._register,))[self._register]
            plan.target.write(bh + self._offset, ctx.to_bytes(8, "little"))


def registers(names: Iterable[str]) -> dict[str, int]:
    """Those of the stopped thread."""
    frame = gdb.newest_frame()
    return {name: int(frame.read_register(name)) & WORD for name in names}


class Plan:
    """What one gdb of ours is there for. Subclasses set their stops in ``arm``."""

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        self.channel = channel
        self.config = config
        self.target = Target(config["pid"])
        self.armed = self.ending = False
        self.stops: list[Stop] = []

    def arm(self) -> None:
        """Called once, while everything is stopped."""
        raise NotImplementedError

    def capture(self, tid: int, second: str = "rsi") -> tuple[dict[str, Any], bytes]:
        """The stopped thread: facts about it, and bytes of its stack (``stop_registers``).

        ``second``: the register that is told as the second argument.
        """
        config, read = self.config["capture"], self.target.memory.read
        facts = {"time_ns": now_ns(), "tid": tid, "thread": self.target.thread_name(tid)}
        values = registers(config["registers"])
        values["rsi"] = values[second]
        size = config["candidate_bytes"]
        raw = b"".join(read(values[name], size).ljust(size, b"\0") for name in config["candidates"])
        # To the end of the page, then page by page until there is none.
        address = values["rsp"]
        for _ in range(config["stack_pages"]):
            wanted = PAGE - address % PAGE
            part = read(address, wanted)
            raw += part
            if len(part) < wanted:
                break
            address += wanted
        return {**facts, "registers": list(values.values())}, raw

    def totals(self) -> dict[str, Any]:
        """What qtrace is told at the very end."""
        return {}

    def stopped(self, event: gdb.StopEvent) -> None:
        """Everything has stopped, and it was not qtrace that wanted it."""
        signalled = getattr(event, "stop_signal", "")
        if signalled == "SIGURG":
            gdb.post_event(go_on)
        else:
            self.channel.send({"kind": "stopped", "signal": signalled})


plan: Plan
lifeline: Lifeline


def prepare(fd: int, lifeline_fd: int, kinds: dict[str, type[Plan]]) -> None:
    """Take qtrace's orders; gdb is not attached yet."""
    global plan, lifeline
    lifeline = Lifeline(lifeline_fd)
    lifeline.hold()
    channel = Channel(fd)
    config = channel.config()
    plan = kinds[config["kind"]](channel, config)
    gdb.events.stop.connect(_on_stop)


def arm() -> None:
    """Set every stop; everything is stopped."""
    plan.arm()
    plan.armed = True


def go_on() -> None:
    """Let everything run. To be posted from ``stopped``: from a stop it could come too early."""
    if not plan.ending:
        gdb.execute("continue &", to_string=True)


def begin_end() -> None:
    """From now on nothing is decided here any more. Says whether the target is running."""
    plan.ending = True
    threads = gdb.selected_inferior().threads()
    running = any(thread.is_running() for thread in threads)
    facts = {"kind": "ending", "running": running, "threads": len(threads)}
    plan.channel.send({**facts, **plan.totals()})


def disarm() -> None:
    """Take every stop away; everything is stopped."""
    for stop in plan.stops:
        if stop.is_valid():
            stop.delete()
    plan.stops.clear()
    lifeline.release()


def _on_stop(event: gdb.StopEvent) -> None:
    if plan.armed and not plan.ending:
        plan.stopped(event)


def now_ns() -> int:
    """CLOCK_MONOTONIC, as the recorders use it."""
    return time.monotonic_ns()
