"""A moment of a recording as a screen, like those of a QEMU that lives."""

from __future__ import annotations

from qtrace.cli.player import KEYS, Player
from qtrace.cli.views.busy import BUSIEST, busy_row
from qtrace.cli.views.screen import Screen, Section
from qtrace.export.drawing import Drawing
from qtrace.export.moments import Moment, Running
from qtrace.units import show


def screen_of(moment: Moment, drawn: Drawing, player: Player | None = None) -> Screen:
    """All of it.

    Args:
        player: who plays it; None of one moment alone.
    """
    now = moment.time_ns
    since, lasts = now - drawn.begin_ns, drawn.end_ns - drawn.begin_ns
    target = drawn.header.get("target", {})
    version = str(target.get("version") or "").partition(" ")[0]
    head = [f"{drawn.path}: {target.get('program') or 'QEMU'} {version}".rstrip(),
            f"{since / 1e9:.6f} s of {lasts / 1e9:.6f} s"]  # fmt: skip
    if player is not None:
        head[1] += (
            f", {'stopped' if player.paused else 'plays'} at {player.speed:.4g} times its speed"
        )
        if player.findings:
            which = f"{player.finding + 1} of " if player.finding >= 0 else ""
            head[1] += f", finding {which}{len(player.findings)}"
    findings = tuple(f"{one.what}: {one.sentence}" for one in moment.findings)
    window = show(moment.window_ns, "ns")
    sections = (
        Section(
            ("thread", "role", "runs", "since"),
            [_thread(one, now) for one in moment.running],
            1,
            frozenset(n for n, one in enumerate(moment.running) if not one.over),
        ),
        Section(
            ("pending", "context", "for"),
            [(one.name or "?", one.context or "?", show(now - one.since_ns, "ns"))
             for one in sorted(moment.pending, key=lambda one: one.since_ns)],
            1,
        ),
        Section(
            ("commands, jobs, waits", "for"),
            [(one.name, show(now - one.begin_ns, "ns")) for one in moment.spans],
            1,
        ),
        Section(
            ("context", "pending", f"ran in {window}"),
            [(name, str(count), f"{ran:,}") for name, count, ran in moment.contexts],
            2,
        ),
        Section(
            (f"busiest in {window}", *BUSIEST),
            [busy_row(one.name or "?", one) for one in moment.busiest],
            len(BUSIEST),
        ),
    )  # fmt: skip
    return Screen(tuple(head), sections, findings, KEYS if player is not None else "")


def _thread(one: Running, now_ns: int) -> tuple[str, ...]:
    name = f"{one.thread.tid} {one.thread.name}".rstrip()
    if one.since_ns < 0:
        return (name, one.thread.role, "nothing yet", "")
    what = f"{one.name or '?'}{', in aio_poll()' if one.poll else ''}"
    runs = f"(last: {what})" if one.over else what
    return (name, one.thread.role, runs, show(now_ns - one.since_ns, "ns"))
