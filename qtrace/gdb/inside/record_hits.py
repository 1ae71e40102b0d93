"""Inside gdb: a message for each hit of a watched site, with what an eBPF probe would copy.

A QMP command costs one stop, where it is taken. Only if it is no query are the others of
``steps`` set, until it is answered: management software asks QEMU many times a second.
"""

from __future__ import annotations

from typing import Any

from qtrace.gdb.inside.stops import Channel, Plan, Stop, registers

QUERY = b"query-"


class WatchedStop(Stop):
    """A call site or callback: registers and stack go to qtrace, the thread goes on."""

    def __init__(self, address: int, recorder: Recorder) -> None:
        super().__init__(address)
        self._recorder = recorder

    def reached(self, tid: int) -> bool:
        self._recorder.take(self.address, tid)
        return False


class Command(WatchedStop):
    """Where a QMP command is taken; a register has its name."""

    def __init__(self, address: int, recorder: Recorder, register: str) -> None:
        super().__init__(address, recorder)
        self._register = register

    def reached(self, tid: int) -> bool:
        self._recorder.taken(self.address, tid, self._register)
        return False


class Reply(WatchedStop):
    """Where a QMP command is answered."""

    def reached(self, tid: int) -> bool:
        self._recorder.take(self.address, tid)
        self._recorder.follow(False)
        return False


class Recorder(Plan):
    """Sends every hit; counts by site those that found no room.

    Config: ``sites``, ``steps``, ``replies`` (addresses), ``commands`` (addresses, each with the
    register that has the command's name).
    """

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._lost: dict[int, int] = {}
        self._steps: list[Stop] = []

    def arm(self) -> None:
        config = self.config
        self._steps = [WatchedStop(address, self) for address in config["steps"]]
        self._steps += [Reply(address, self) for address in config["replies"]]
        self.stops += [WatchedStop(address, self) for address in config["sites"]]
        self.stops += [Command(address, self, name) for address, name in config["commands"]]
        self.stops += self._steps
        self.follow(False)

    def totals(self) -> dict[str, Any]:
        return {"lost": self._lost}

    def follow(self, follows: bool) -> None:
        """Stop, or do not, at the later steps of a command."""
        for stop in self._steps:
            stop.enabled = follows

    def taken(self, address: int, tid: int, register: str) -> None:
        name = self.target.memory.read(registers((register,))[register], len(QUERY))
        if name != QUERY:
            self.follow(True)
            self.take(address, tid, register)

    def take(self, address: int, tid: int, second: str = "rsi") -> None:
        """``second``: the register that is told as the second argument."""
        facts, raw = self.capture(tid, second)
        if not self.channel.send({"kind": "hit", **facts, "lost": self._lost}, raw):
            self._lost[address] = self._lost.get(address, 0) + 1


KINDS: dict[str, type[Plan]] = {"record": Recorder}
