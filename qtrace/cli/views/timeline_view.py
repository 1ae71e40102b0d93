"""The timeline of QMP commands and jobs, for people: one each, and below it what it met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from qtrace.cli.views.look_view import say
from qtrace.cli.views.verdict_view import inert
from qtrace.units import show

JOB_TIMES = ("created", "running", "concluded", "dismissed")


def print_timelines(console: Console, traces: Sequence[Any]) -> None:
    """Print what ``qtrace.analysis.timelines`` returns; times since the recording began."""
    for number, trace in enumerate(traces):
        if number:
            console.print()
        if len(traces) > 1:
            say(console, trace["path"], style="bold")
        if not trace["commands"] and not trace["jobs"]:
            say(console, "no QMP command took 10 ms or met anything else, and no job was there")
        entries = [(_first(one), _command(one, trace["began_ns"])) for one in trace["commands"]]
        entries += [(job["first_ns"], _job(job, trace["began_ns"])) for job in trace["jobs"]]
        for _time, lines in sorted(entries, key=lambda entry: entry[0]):
            head, *rest = lines
            console.print(Text(inert(head), style="bold"))
            for line in rest:
                say(console, f"    {line}")


def _first(command: Any) -> int:
    times = [command[f"{step}_ns"] for step in ("taken", "begun", "ended", "replied")]
    return next((time for time in times if time is not None), 0)


def _command(one: Any, began: int) -> list[str]:
    thread = f"{one['role'] or 'thread'} {one['thread']}"
    head = f"{_at(_first(one), began)}  QMP {one['name']}"
    if one["took_ns"] is not None:
        least = "" if one["ended_ns"] is not None else "at least "
        head += f": {least}{show(one['took_ns'], 'ns')} on {thread}"
    if one["replied_ns"] is None:
        head += ", not answered"
    elif one["taken_ns"] is not None:
        head += f", answered after {show(one['replied_ns'] - one['taken_ns'], 'ns')}"
    if not one["sure"]:
        head += " (a step may have been lost)"
    lines = [head]
    lines += _listed("ran inside", one["inside"])
    lines += _listed("before the reply ran", one["before_reply"])
    lines += _listed("waited for its end", one["waited"])
    lines += _stopped(one)
    lines += [f"seen: {sentence}" for sentence in one["looks"]]
    return lines


def _job(job: Any, began: int) -> list[str]:
    times = [
        f"{state} {_at(job[f'{state}_ns'], began)}"
        for state in JOB_TIMES
        if job[f"{state}_ns"] is not None
    ]
    last = "" if job["status"] == "null" else f", {job['status']} when it was last seen"
    head = f"{_at(job['first_ns'], began)}  job {job['name']}: {', '.join(times)}{last}"
    return [head, *_listed("ran meanwhile", job["inside"]), *_stopped(job)]


def _at(time_ns: int, began: int) -> str:
    return f"{(time_ns - began) / 1e9:+.6f} s"


def _listed(what: str, found: list[Any]) -> Iterator[str]:
    if not found:
        return
    parts = []
    for one in found:
        times = "" if one["count"] == 1 else f" {one['count']:,} times,"
        longest = "" if one["count"] == 1 else " at most"
        where = f" on {one['role'] or 'thread'} {one['thread']}" if one["thread"] else ""
        parts.append(f"{one['name']}{times} {show(one['longest_ns'], 'ns')}{longest}{where}")
    yield f"{what}: {'; '.join(parts)}"


def _stopped(one: Any) -> Iterator[str]:
    if one["guest_stopped_ns"]:
        yield f"the guest was stopped for {show(one['guest_stopped_ns'], 'ns')} of it"
