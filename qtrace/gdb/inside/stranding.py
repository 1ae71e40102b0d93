"""Inside gdb: the mail thread's own experiment. A bottom half puts itself off, again and again.

It is rerouted first. Then, whenever it is entered, its callback becomes a jump to
aio_bh_schedule_oneshot_full() with the same arguments, which returns to the callback's caller.
"""

from __future__ import annotations

from typing import Any

from qtrace.gdb.inside.rerouting import Rerouting
from qtrace.gdb.inside.stops import Channel, Plan, Stop, now_ns, registers


class Entered(Stop):
    """Just inside the callback; its argument is still in rdi."""

    def __init__(self, address: int, stranding: Stranding) -> None:
        super().__init__(address)
        self._stranding = stranding

    def reached(self, tid: int) -> bool:
        self.effect = self._stranding.put_off(tid) or self.effect
        return False


class Stranding(Rerouting):
    """Config, beside Rerouting's: ``run`` (just inside the callback), ``pushed`` (bytes that it
    has pushed by then), ``scheduler``, ``callback``, ``name`` (addresses), ``limit`` (after so
    many times it may run).
    """

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        super().__init__(channel, config)
        self._times = 0

    def arm(self) -> None:
        super().arm()
        self.stops.append(Entered(self.config["run"], self))

    def put_off(self, tid: int) -> dict[str, Any] | None:
        """The jump that it becomes, None when it shall run."""
        if self.ending or self._times >= self.config["limit"]:
            return None
        self._times += 1
        values = registers(("rdi", "rsp"))
        self.channel.send({
            "kind": "put off", "time_ns": now_ns(), "tid": tid,
            "thread": self.target.thread_name(tid), "times": self._times,
        })  # fmt: skip
        arguments = {
            "rdx": values["rdi"],
            "rdi": self.config["to"],
            "rsi": self.config["callback"],
            "rcx": self.config["name"],
            "rsp": values["rsp"] + self.config["pushed"],
        }
        return {"set": arguments, "next": self.config["scheduler"]}


KINDS: dict[str, type[Plan]] = {"strand": Stranding}
