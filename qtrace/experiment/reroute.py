"""Schedule a bottom half into another AioContext: the fix of QEMU issue 2111 without a rebuild."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qtrace.errors import TargetError
from qtrace.experiment.experiment import Experiment, Thread
from qtrace.gdb.channel import Message
from qtrace.inspection.qemu import LiveQemu
from qtrace.sites.experiment_places import context_chosen

To = Literal["iohandler", "main"]


@dataclass(frozen=True, slots=True)
class Reroute:
    """One schedule that went elsewhere; ``came_from`` is empty for a context without a name."""

    time_ns: int
    thread: Thread
    came_from: str


class Rerouting(Experiment[Reroute]):
    """Sends a bottom half elsewhere. What has been rerouted stays where it then is."""

    script = "rerouting"

    def __init__(self, qemu: LiveQemu, name: str, to: To, count: int = 0) -> None:
        """Find all places.

        Args:
            count: after so many it changes nothing any more; 0 for no end.

        Raises:
            TargetError: this QEMU has no such context (yet).
            ScanFailed: the code does not show where the context is chosen.
            NoMatch
        """
        super().__init__(qemu, name)
        ctx = qemu.contexts.find(to)
        if not ctx:
            raise TargetError(
                f"process {qemu.pid} has no AioContext '{to}'",
                "QEMU makes it for its first monitor or character device",
            )
        schedules = [chosen.at(qemu.bias) for chosen in context_chosen(qemu.binary, self.half)]
        self.config = {
            "kind": "reroute",
            "stops": [chosen["address"] for chosen in schedules],
            "schedules": schedules,
            "to": ctx,
            "count": count,
        }
        self._count = count

    @property
    def done(self) -> bool:
        return 0 < self._count <= len(self.seen)

    def _read(self, message: Message) -> Reroute | None:
        facts = message.facts
        if facts["kind"] != "reroute":
            return None
        return Reroute(
            time_ns=facts["time_ns"],
            thread=self.thread(facts["tid"], facts["thread"]),
            came_from=self.qemu.contexts.name(facts["ctx"]),
        )
