"""Inside gdb: a bottom half is scheduled into another AioContext, as if QEMU were patched."""

from __future__ import annotations

from typing import Any

import gdb

from qtrace.gdbscripts.stops import Channel, Plan, Stop, now_ns, registers


class Chosen(Stop):
    """The context has just been returned, in rax, and will be handed on."""

    def __init__(self, address: int, rerouting: Rerouting) -> None:
        super().__init__(address)
        self._rerouting = rerouting

    def reached(self, tid: int) -> bool:
        self._rerouting.chosen(tid)
        return False


class Rerouting(Plan):
    """Config: ``schedules`` (addresses), ``to`` (the AioContext), ``count`` (0: no end)."""

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._done = 0

    def arm(self) -> None:
        self.stops += [Chosen(address, self) for address in self.config["schedules"]]

    def chosen(self, tid: int) -> None:
        count = self.config["count"]
        if self.ending or (count and self._done >= count):
            return
        self._done += 1
        ctx = registers(("rax",))["rax"]
        gdb.execute(f"set $rax = {self.config['to']:#x}")
        self.channel.send({
            "kind": "reroute", "time_ns": now_ns(), "tid": tid,
            "thread": self.target.thread_name(tid), "ctx": ctx,
        })  # fmt: skip


KINDS: dict[str, type[Plan]] = {"reroute": Rerouting}
