"""Inside gdb: a bottom half is scheduled into another AioContext, as if QEMU were patched."""

from __future__ import annotations

from typing import Any

from qtrace.gdb.inside.stops import Channel, ContextChosen, Plan, now_ns


class Chosen(ContextChosen):
    """The bottom half is about to be scheduled."""

    def __init__(self, chosen: dict[str, Any], rerouting: Rerouting) -> None:
        super().__init__(chosen)
        self._rerouting = rerouting

    def reached(self, tid: int) -> bool:
        self._rerouting.chosen(tid, self)
        return False


class Rerouting(Plan):
    """Config: ``schedules`` (see ``ContextChosen``), ``to`` (the AioContext), ``count`` (0: no
    end)."""

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._done = 0

    def arm(self) -> None:
        self.stops += [Chosen(chosen, self) for chosen in self.config["schedules"]]

    def chosen(self, tid: int, place: Chosen) -> None:
        count = self.config["count"]
        if self.ending or (count and self._done >= count):
            return
        self._done += 1
        ctx = place.context()
        place.change(self.config["to"])
        self.channel.send({
            "kind": "reroute", "time_ns": now_ns(), "tid": tid,
            "thread": self.target.thread_name(tid), "ctx": ctx,
        })  # fmt: skip


KINDS: dict[str, type[Plan]] = {"reroute": Rerouting}
