"""Force the next runs of a bottom half onto a vCPU thread, or onto the main thread."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from qtrace.errors import ScanFailed, TargetError
from qtrace.experiment.experiment import Experiment, Thread
from qtrace.gdb.channel import Message
from qtrace.gdb.stop_registers import CAPTURE, hit_of
from qtrace.inspection.qemu import LiveQemu
from qtrace.process.stack import CopiedStack
from qtrace.qemu.aio.layout import Layout
from qtrace.sites.experiment_places import context_chosen, just_entered, main_loop_unlock

RunOn = Literal["vcpu", "main"]
# The longest that the main loop, or all others, are held for one run; a vCPU thread that polls
# takes 0.02 to 7 ms to get at it.
HOLD_S = 0.015
# So many holds to the end in a row show that nobody will come.
FRUITLESS = 10
# What reading a context's list of bottom halves needs.
LISTS = ("ctx_bh_list", "ctx_bh_slice_list", "bh_next", "bh_flags", "bh_cb", "main_variable")


@dataclass(frozen=True, slots=True)
class Run:
    """One run that was to be steered.

    Attributes:
        as_wanted: whether it was on a thread of the role that was wanted.
        context: the name of the AioContext it was scheduled into, empty when not known.
        held_ms: how long the main thread (or all others) were held for it.
        limit: nothing had happened when the longest hold was over.
        stack: functions, leaf first.
    """

    time_ns: int
    thread: Thread
    as_wanted: bool
    context: str
    held_ms: float
    limit: bool
    stack: list[str]


class Steering(Experiment[Run]):
    """Brings about so many runs on the wanted thread, by holding whoever is in the way."""

    script = "steering"

    def __init__(
        self, qemu: LiveQemu, name: str, run_on: RunOn, count: int = 1, hold_s: float = HOLD_S
    ) -> None:
        """Find all places.

        Args:
            hold_s: the longest hold for one run.

        Raises:
            TargetError: no vCPU thread can ever run it.
            ScanFailed: the code does not show the places.
            NoMatch
        """
        super().__init__(qemu, name)
        half, module, bias = self.half, qemu.binary, qemu.bias
        contexts = {site.context for site in half.sites}
        if run_on == "vcpu" and contexts == {"iohandler"}:
            raise TargetError(
                f"{half.name} goes into iohandler, which no vCPU thread ever polls",
                "qtrace scan shows the context of each bottom half; qtrace reroute changes it",
            )
        schedules = [chosen.at(bias) for chosen in context_chosen(module, half)]
        unlock = main_loop_unlock(module)
        place = unlock.after if run_on == "vcpu" else unlock.before
        run = just_entered(module, half.callback).address + bias
        self.config = {
            "kind": run_on,
            "stops": [*(chosen["address"] for chosen in schedules), place + bias, run],
            "schedules": schedules,
            "unlock": place + bias,
            "unlock_byte": module.elf.read(place, 1)[0],
            "run": run,
            "callback": half.callback + bias,
            "layout": asdict(_layout(qemu)),
            "limit_s": hold_s,
            "count": count,
            "capture": CAPTURE,
        }
        self._run_on, self._count = run_on, count

    @property
    def done(self) -> bool:
        return sum(run.as_wanted for run in self.seen) >= self._count

    @property
    def hopeless(self) -> bool:
        last = self.seen[-FRUITLESS:]
        return len(last) == FRUITLESS and not any(run.as_wanted for run in last)

    def _read(self, message: Message) -> Run | None:
        if message.facts["kind"] != "run":
            return None
        facts, hit = message.facts, hit_of(message)
        memory, unwinder = CopiedStack(hit.stack_base, hit.stack), self.qemu.unwinder
        frames = unwinder.names(unwinder.unwind(hit.registers, memory.word))
        thread = self.thread(hit.tid, hit.thread, frames)
        return Run(
            time_ns=hit.time_ns,
            thread=thread,
            as_wanted=thread.role == self._run_on,
            context=self.qemu.contexts.name(facts["ctx"]),
            held_ms=round(facts["held_ms"], 3),
            limit=facts["limit"],
            stack=[frame.split("+0x")[0] for frame in frames],
        )


def _layout(qemu: LiveQemu) -> Layout:
    """Raises ScanFailed when the code does not show where bottom halves are listed."""
    missing = [fact for fact in LISTS if getattr(qemu.layout, fact) is None]
    if missing:
        raise ScanFailed(
            f"the code of {qemu.binary.name} does not show {', '.join(missing)}",
            "try the QEMU of a distribution; qtrace inspect says what else is missing",
        )
    return qemu.layout
