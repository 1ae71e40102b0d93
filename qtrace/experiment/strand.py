"""Keep a bottom half from running, as the mail thread did with a patch, until QEMU shuts down."""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.errors import ScanFailed
from qtrace.experiment.experiment import Experiment, Thread
from qtrace.gdb.channel import Message
from qtrace.inspection.qemu import LiveQemu
from qtrace.sites.experiment_places import context_chosen, just_entered, name_argument

# At a thousand a second this is longer than anybody waits for.
LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class PutOff:
    """It was about to run and was scheduled again instead, for the ``times``-th time."""

    time_ns: int
    thread: Thread
    times: int


class Stranding(Experiment[PutOff]):
    """Reroutes a bottom half into iohandler and puts it off there whenever it is about to run.

    Once the main thread polls only the main context, as in its clean-up, it is pending for good.
    """

    script = "stranding"

    def __init__(self, qemu: LiveQemu, name: str) -> None:
        """Find all places. Raises NoMatch, or ScanFailed when the code does not show them."""
        super().__init__(qemu, name)
        half, module, bias = self.half, qemu.binary, qemu.bias
        entered = just_entered(module, half.callback)
        if entered.pushed is None:
            raise ScanFailed(
                f"the callback of {half.name} begins in an unusual way",
                "try the QEMU of a distribution",
            )
        schedules = [chosen.at(bias) for chosen in context_chosen(module, half)]
        run = entered.address + bias
        self.config = {
            "kind": "strand",
            "stops": [*(chosen["address"] for chosen in schedules), run],
            "schedules": schedules,
            "to": qemu.contexts.find("iohandler"),
            "count": 0,
            "run": run,
            "pushed": entered.pushed,
            "scheduler": qemu.scan.scheduler + bias,
            "callback": half.callback + bias,
            "name": name_argument(module, half) + bias,
            "limit": LIMIT,
        }

    @property
    def done(self) -> bool:
        return False

    def _read(self, message: Message) -> PutOff | None:
        facts = message.facts
        if facts["kind"] != "put off":
            return None
        thread = self.thread(facts["tid"], facts["thread"])
        return PutOff(facts["time_ns"], thread, facts["times"])
