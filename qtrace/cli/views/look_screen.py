"""Looks at a live QEMU as a screen: who does what, what is pending, what is in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from qtrace.cli.views.look_view import big_lock, doing
from qtrace.cli.views.screen import Section
from qtrace.inspection.request_look import RequestLook
from qtrace.inspection.since import Since
from qtrace.knowledge import ONESHOT
from qtrace.qemu.aio.model import BottomHalf, Look, Thread
from qtrace.roles import ORDER
from qtrace.units import show


class LookScreen:
    """The sections of one QEMU's looks; since when each thing has been so is kept between them."""

    def __init__(self) -> None:
        self._threads, self._halves, self._requests = Since(), Since(), Since()

    def threads(self, look: Look) -> Section:
        """Those that do something for the event loops first; then how long each has not run."""
        threads = [thread for thread in look.threads if not thread.kernel]
        states = {
            thread.tid: (thread.cpu_ns, thread.turns)
            for thread in threads
            if thread.blocked_in and thread.cpu_ns
        }
        for_ns = self._threads.saw(states, look.time_ns)
        ordered = sorted(threads, key=lambda one: (ORDER.index(one.role), one.tid))
        rows = [
            (
                f"{one.tid} {one.name}".rstrip(),
                one.role,
                _does(look, one),
                show(for_ns[one.tid], "ns") if for_ns.get(one.tid) else "",
            )
            for one in ordered
        ]
        loud = frozenset(
            number for number, one in enumerate(ordered) if one.polls and one.role != "iothread"
        )
        return Section(("thread", "role", "does", "has not run"), rows, 1, loud)

    def contexts(self, look: Look, rates: dict[str, float] | None = None) -> Section:
        """How much is pending in each; ``rates``: of events in a second, by name, where they are
        recorded."""
        rows = []
        for context in look.contexts:
            runner = look.thread(context.tid)
            unread = context.address in look.unread
            count = sum(half.ctx == context.address for half in look.bottom_halves)
            row = (context.label, runner.label if runner else "", "?" if unread else str(count))
            rate = (rates or {}).get(context.name, 0.0)
            rows.append(row if rates is None else (*row, f"{rate:,.0f}"))
        titles = ("context", "run by", "pending")
        if rates is None:
            return Section(titles, rows, 1)
        return Section((*titles, "events/s"), rows, 2)

    def pending(self, look: Look, ages_ns: Mapping[int, int] = MappingProxyType({})) -> Section:
        """Each bottom half that will run, that longest seen so first.

        Args:
            ages_ns: by its address, for how long, where a recording knows.
        """
        halves = {
            (one.address, one.cb, one.opaque, one.ctx): one
            for one in look.bottom_halves
            if one.will_run
        }
        for_ns = self._halves.saw(
            {key: _unmoved(look, half) for key, half in halves.items()}, look.time_ns
        )
        for_ns |= {key: ages_ns[key[0]] for key in halves if key[0] in ages_ns}
        ordered = sorted(halves, key=lambda key: -for_ns[key])
        rows = [
            (halves[key].label, look.context(halves[key].ctx).label, show(for_ns[key], "ns"))
            for key in ordered
        ]
        return Section(("pending", "context", "seen for"), rows, 1)

    def requests(self, found: RequestLook) -> Section:
        """What is in flight, and for what it waits; those that wait for others last."""
        all_of_them = [*found.causes, *found.behind]
        for_ns = self._requests.saw(dict.fromkeys(one.key for one in all_of_them), found.time_ns)
        rows = [
            (
                one.where,
                found.whom[one.key].text if one.key in found.whom else one.wait.text,
                show(for_ns[one.key], "ns"),
            )
            for one in all_of_them
        ]
        return Section(("in flight", "waits", "seen for"), rows, 1)


def state_line(look: Look, requests: RequestLook | None) -> str:
    """BQL, guest, what keeps the process from moving."""
    parts = [big_lock(look)]
    if requests is not None and requests.blocks.run_state:
        parts.append(f"guest {requests.blocks.run_state}")
    if look.held:
        parts.append(f"the process is {look.held}")
    parts += [f"not shown: {', '.join(look.torn)}"] if look.torn else []
    return "; ".join(parts)


def _unmoved(look: Look, half: BottomHalf) -> tuple[int, int] | None:
    """What is the same in two looks between which it cannot have run: a one-shot is made anew for
    each schedule, any other one may have run whenever its thread did."""
    runner = look.thread(look.context(half.ctx).tid)
    return None if half.flags & ONESHOT or runner is None else (runner.cpu_ns, runner.turns)


def _does(look: Look, thread: Thread) -> str:
    polled: Sequence[str] = [
        look.context(poll.ctx).label if poll.ctx else "?" for poll in thread.polls
    ]
    polls = f", polls {' inside '.join(polled)}" if polled else ""
    return doing(thread) + polls
