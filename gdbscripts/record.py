"""Inside gdb: a message for each hit of a watched site, with what an eBPF probe would copy."""

from __future__ import annotations

from typing import Any

from qtrace.gdbscripts.stops import Channel, Plan, Stop


class Site(Stop):
    """A call site or callback: registers and stack go to qtrace, the thread goes on."""

    def __init__(self, address: int, recorder: Recorder) -> None:
        super().__init__(address)
        self._recorder = recorder

    def reached(self, tid: int) -> bool:
        self._recorder.take(self.address, tid)
        return False


class Recorder(Plan):
    """Sends every hit; counts by site those that found no room."""

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._lost: dict[int, int] = {}

    def arm(self) -> None:
        self.stops += [Site(address, self) for address in self.config["stops"]]

    def take(self, address: int, tid: int) -> None:
        facts, raw = self.capture(tid)
        if not self.channel.send({"kind": "hit", **facts, "lost": self._lost}, raw):
            self._lost[address] = self._lost.get(address, 0) + 1


KINDS: dict[str, type[Plan]] = {"record": Recorder}
