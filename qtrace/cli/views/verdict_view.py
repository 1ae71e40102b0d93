"""The answer for people, at 80 columns: what ran where, the chain that proves it, the verdict."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qtrace.units import show

# What ``judge`` returns, or a laboratory's outcome, which has more.
Report = Mapping[str, Any]

STYLES = {
    "stuck": "bold red",
    "stranded": "bold red",
    "vcpu-poll": "bold red",
    "foreign-poll": "bold red",
    "inconclusive": "bold yellow",
    "pending": "yellow",
}
FINE = "green"
ROLES = {
    "vcpu": "vCPU thread",
    "iothread": "IOThread",
    "migration": "migration thread",
    "worker": "worker thread",
}
# A chain is shown whole up to this length, a longer one at least down to the device.
FRAMES = 30
SCHEDULE_FRAMES = 6
# So many that ran elsewhere than in their own loop are told.
ELSEWHERE = 20


def inert(value: object) -> str:
    r"""Text from a trace for a terminal: what could steer it becomes ``\xNN``.

    Unlike the writer's escape this leaves backslashes alone: they were escaped before.
    """
    return "".join(
        char
        if char.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in str(value)
    )


def forget_paths(report: Report) -> None:
    """The trace is not kept: no path of it in the answer."""
    for trace in report["traces"]:
        trace["path"] = None
    findings = [finding for half in report["bottom_halves"] for finding in half["findings"]]
    findings += [finding for lint in report["lints"] for finding in lint["findings"]]
    for one in (*findings, *report["stuck"], *report["computing"], *report["held"]):
        one["evidence"]["trace"] = None
    for lint in report["lints"]:
        lint["trace"] = None


def print_warnings(console: Console, report: Report) -> None:
    """What is missing or was skipped in the files; these go to stderr."""
    for warning in report["warnings"]:
        console.print(Text(f"warning: {inert(warning)}", style="yellow"))


def print_report(console: Console, report: Report) -> None:
    """Print a report of ``qtrace.analysis.judge``."""
    # Here and not above: what shows a look at a process has no use for pandas.
    from qtrace.analysis.wording import UNSEEN, not_seen_sentence

    for trace in report["traces"]:
        console.print(Text(_target(trace)))
    halves = report["bottom_halves"]
    seen = [half for half in halves if half["verdict"] != "not-seen"]
    unseen = len(halves) - len(seen)
    shown = halves if seen and unseen <= UNSEEN else seen
    if shown:
        console.print()
        console.print(_table(shown))
    if seen and len(shown) < len(halves):
        console.print(Text(f"and {unseen} that were not scheduled while the recording ran"))
    # The cause first: what merely waits behind it comes after.
    for stuck in report["stuck"]:
        console.print()
        _print_stuck(console, stuck)
    for half in halves:
        if half["findings"]:
            console.print()
            _print_finding(console, half["name"], half["findings"][0])
    for line in _elsewhere(report):
        console.print(line)
    console.print()
    for line in _calls(report):
        console.print(line)
    for line in _late_replies(report):
        console.print(line)
    for line in _gaps(report):
        console.print(line)
    for stuck in report["stuck"]:
        line = Text().append("stuck: ", STYLES["stuck"])
        console.print(line.append(inert(f"{_loop(stuck)} {_how_long(stuck)}")))
    if report["notes"] and not report["stuck"]:
        for note in report["notes"]:
            console.print(
                Text().append("inconclusive: ", STYLES["inconclusive"]).append(inert(note))
            )
    for half in _told_together(seen):
        console.print(_verdict(half, report))
    if not seen:
        sentence = inert(not_seen_sentence(report))
        console.print(Text().append("not-seen: ", FINE).append(sentence))


def _print_stuck(console: Console, stuck: dict[str, Any]) -> None:
    sentence = f"{stuck['sentence']}, for at least {show(stuck['at_least_ns'], 'ns')}"
    console.print(Text(inert(sentence), style="bold"))
    stack = [inert(frame) for frame in stuck["stack"]]
    for frame in stack[:FRAMES]:
        console.print(Text(f"  {frame}"))
    if len(stack) > FRAMES:
        console.print(Text(f"  ... {len(stack) - FRAMES} more, to the start of the thread"))
    if stuck["over_ns"] is not None:
        what = "it came back to its loop" if stuck["came_back"] else "it went on"
        console.print(Text(f"{what} before the recording ended"))
    console.print(_evidence(stuck))


def _evidence(finding: dict[str, Any]) -> Text:
    *first, last = map(str, finding["evidence"]["rows"])
    rows = f"{', '.join(first)} and {last}" if first else last
    trace = finding["evidence"]["trace"]
    where = f"row {rows} of {trace}" if trace else "keep the trace with -o"
    return Text(inert(f"evidence: {where}"))


def _loop(away: dict[str, Any]) -> str:
    """A loop's thread, in the words of a verdict."""
    own = "the main loop" if away["role"] == "main" else f"the loop of {away['thread']}"
    return f"{own} ({away['command']})" if away["command"] else own


def _how_long(away: dict[str, Any]) -> str:
    lasted = f"for at least {show(away['at_least_ns'], 'ns')}"
    return f"did not run {lasted}" + ("" if away["over_ns"] is None else ", then it went on")


def _late_replies(report: Report) -> Iterator[Text]:
    for late in report["late_replies"]:
        times = "" if late["count"] == 1 else f" (the worst of {late['count']})"
        why = "nothing that was recorded ran in between"
        if late["waited_for"]:
            where = f"{late['role'] or 'thread'} {late['thread']}"
            why = f"{late['waited_for']} ran for {_ms(late['ran_ns'])} on {where} first"
        yield Text(
            inert(
                f"{late['command']} was done after {_ms(late['done_after_ns'])} and answered after "
                f"{_ms(late['replied_after_ns'])}{times}: {why}"
            )
        )


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.1f} ms"


def _target(trace: dict[str, Any]) -> str:
    target = trace["target"]
    version, build_id = target.get("version"), target.get("build_id")
    parts = [
        f"{target.get('program') or 'QEMU'} {version or ''}".strip(),
        f"pid {target['pid']}" if "pid" in target else "",
        f"build id {str(build_id)[:12]}" if build_id else "",
        f"recorded by {trace['recorder']}" if trace["recorder"] else "",
        str(trace["wall_clock"]),
    ]
    return inert(", ".join(part for part in parts if part))


def _table(halves: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("bottom half", overflow="fold")
    table.add_column("scheduled", justify="right", no_wrap=True)
    table.add_column("verdicts", overflow="fold")
    for half in halves:
        counts = half["verdicts"] or {half["verdict"]: None}
        cell = Text()
        for verdict, count in counts.items():
            cell.append(", " if cell else "")
            text = verdict if count is None else f"{count} {verdict}"
            cell.append(text, STYLES.get(verdict, FINE if count else ""))
        table.add_row(Text(inert(half["name"])), str(half["scheduled"]), cell)
    return table


def _print_finding(console: Console, name: str, finding: dict[str, Any]) -> None:
    thread = _thread(finding["role"], finding["thread"])
    context = finding["context"] or "?"
    if finding["verdict"] == "stranded":
        console.print(Text(inert(finding["sentence"]), style="bold"))
        polls = f"polls `{finding['polls']}`" if finding["polls"] else "waits"
        marks = {finding["deciding_frame"]: f"<- {thread} {polls}"}
    else:
        console.print(Text(inert(f"{name} ran on {thread} (tid {finding['tid']}):"), style="bold"))
        marks = {finding["deciding_frame"]: f"<- {thread} polls `{context}`"}
    if finding["device_frame"] is not None:
        marks[finding["device_frame"]] = f"<- {_access(finding)}"
    stack = [inert(frame) for frame in finding["stack"]]
    shown = len(stack)
    if shown > FRAMES:
        shown = max(FRAMES, max(marks) + 1)
    width = max(len(stack[index]) for index in marks) + 2
    for index, frame in enumerate(stack[:shown]):
        mark = inert(marks.get(index, ""))
        line = Text("  ").append(f"{frame:<{width}}" if mark else frame)
        console.print(line.append(mark, STYLES.get(finding["verdict"], "")))
    if shown < len(stack):
        console.print(Text(f"  ... {len(stack) - shown} more, to the start of the thread"))
    console.print(Text(inert(_scheduled(finding, context))))
    console.print(_evidence(finding))


def _thread(role: str, name: str) -> str:
    """Without debug-threads=on every thread bears the program's name: the role says more."""
    return "the main thread" if role == "main" else f"{ROLES.get(role, 'thread')} {name}".strip()


def _access(finding: dict[str, Any]) -> str:
    frame = finding["stack"][finding["device_frame"]]
    for word in ("write", "read"):
        if word in frame:
            return f"the guest's device {word}"
    return "the guest's device access"


def _scheduled(finding: dict[str, Any], context: str) -> str:
    if finding["scheduled_ns"] is None:
        return "scheduled before the recording began"
    wait = (finding["time_ns"] - finding["scheduled_ns"]) / 1e6
    if finding["scheduled_by_tid"] is None:
        return f"pending in `{context}` when it was first seen, {wait:.3f} ms before"
    thread = _thread(finding["scheduled_by_role"], finding["scheduled_by_thread"])
    tid = finding["scheduled_by_tid"]
    line = f"scheduled by {thread} (tid {tid}) into `{context}`, {wait:.3f} ms before"
    chain = finding["scheduled_stack"]
    if chain:
        more = " <- ..." if len(chain) > SCHEDULE_FRAMES else ""
        line += f": {' <- '.join(chain[:SCHEDULE_FRAMES])}{more}"
    return line


def _elsewhere(report: Report) -> Iterator[Text]:
    """Whatever ran on a thread that does not own its context, watched or not."""
    rows = [row for trace in report["elsewhere"] for row in trace]
    if not rows:
        return
    told = [row for row in rows if not row["awaited"]]
    awaited = [row for row in rows if row["awaited"]]
    yield Text()
    yield Text("bottom halves that ran on a thread that does not own their context:")
    for row in told[:ELSEWHERE]:
        threads = "" if row["threads"] == 1 else f" and {row['threads'] - 1} more"
        line = Text(f"  {row['count']} of {row['runs']} ").append(
            row["verdict"], STYLES.get(row["verdict"], "")
        )
        where = (
            f"{row['name']} (`{row['context'] or '?'}`) on {_thread(row['role'], row['thread'])}"
        )
        yield line.append(inert(f": {where}{threads}"))
    if len(told) > ELSEWHERE:
        yield Text(f"  and {len(told) - ELSEWHERE} more: --format json has them")
    if awaited:
        names = ", ".join(f"{row['name']} ({row['count']} of {row['runs']})" for row in awaited)
        yield Text(inert(f"  and what such polls wait for: {names}"))


def _calls(report: Report) -> list[Text]:
    lines = []
    for call in report["calls"]:
        counts = call["roles"].items()
        roles = ", ".join(f"{count} on {role or 'unknown'}" for role, count in counts)
        lines.append(Text(inert(f"{call['name']}() was called {_times(call['count'])}: {roles}")))
        if call["name"] == "vm_stop" and call["roles"].get("vcpu"):
            # system/cpus.c: it posts a request and returns ("FIXME: should not return").
            text = "  on a vCPU thread it only requests the stop: the guest was still running"
            lines.append(Text(text, style="yellow"))
    return lines


def _gaps(report: Report) -> list[Text]:
    lines = [inert(held["sentence"]) for held in report["held"]]
    lines += [inert(computing["sentence"]) for computing in report["computing"]]
    if report["lost_events"]:
        lines.append(f"{report['lost_events']} events were lost")
    if not report["complete"]:
        lines.append("incomplete: a trace was cut off before its end")
    for trace in report["traces"]:
        if trace["exit"] is not None:
            lines.append(f"the target {_exit(trace['exit'])}")
    for half in _told_together(report["bottom_halves"]):
        lines += [inert(f"{half['name']}: {note}") for note in half["notes"]]
    return [Text(line, style="yellow") for line in lines]


def _told_together(halves: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, but those of which nothing was recorded, for the same reason, are one with the
    names of all."""
    from qtrace.analysis.wording import listed

    alike: dict[tuple[str, ...], list[str]] = {}
    for half in halves:
        key = (half["name"],) if half["verdicts"] else (half["verdict"], *half["notes"])
        alike.setdefault(key, []).append(half["name"])
    by_first = {names[0]: names for names in alike.values()}
    for half in halves:
        if names := by_first.get(half["name"]):
            yield {**half, "name": listed(names)}


def _exit(facts: dict[str, Any]) -> str:
    if "signal" in facts:
        try:
            return f"was killed by {signal.Signals(facts['signal']).name}"
        except ValueError:
            return inert(f"was killed by signal {facts['signal']}")
    return inert(f"exited with status {facts['status']}") if "status" in facts else "exited"


def _verdict(half: dict[str, Any], report: Report) -> Text:
    from qtrace.analysis.wording import verdict_sentence

    verdict = half["verdict"]
    sentence = verdict_sentence(half, stuck=bool(report["stuck"]))
    if verdict == "inconclusive":
        sentence += " (see above)"
    return Text().append(f"{verdict}: ", STYLES.get(verdict, FINE)).append(inert(sentence))


def _times(count: int) -> str:
    return "1 time" if count == 1 else f"{count} times"
