"""The answer of a check, for people in at most ten lines, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from qtrace.check.deep import Deep
from qtrace.check.one_qemu import HEALTHY, INCONCLUSIVE, SLOW, STOPPED, Checked
from qtrace.check.sightings import Loop, Processors, Sightings
from qtrace.check.whole_host import OneOfMany
from qtrace.cli.views.answer_view import status as looks_status
from qtrace.cli.views.block_view import answer_findings_json
from qtrace.cli.views.look_view import FINDING, NOTE, clear_words, say, tell
from qtrace.cli.views.verdict_view import inert
from qtrace.errors import ExitStatus
from qtrace.qemu.aio.findings import COMPUTES
from qtrace.units import show

# Of so many findings the sentences are told, of more the number.
TOLD, TOLD_OF_LINTS = 2, 2
# More nobody reads at once.
LINES = 10
# A guest whose vCPUs wait for the host's processors for more of their time feels slow.
# A loop that runs for such a share of the time is told as busy.
BUSY = 0.5
CROWDED = 0.1


def status(found: Checked) -> ExitStatus:
    """As ``qtrace inspect`` has it of what looks show; what the recording shows is proven."""
    if found.noted:
        return ExitStatus.FINDING
    return looks_status(found.answer.findings, found.reasons)


def answer(found: Checked) -> tuple[ExitStatus, dict[str, Any]]:
    """What is kept of one of many."""
    return status(found), checked_json(found)


def checked_json(found: Checked) -> dict[str, Any]:
    """Times are nanoseconds; what is not known is null."""
    sightings = found.sightings
    return {
        "verdict": found.verdict,
        "target": _target(found),
        "guest": inert(found.name) or None,
        "watched_ns": sightings.lasted_ns,
        "findings": answer_findings_json(found.answer),
        "noted": [
            {"verdict": one.verdict, "sentence": inert(one.sentence), **one.facts}
            for one in found.noted
        ],
        "remarks": [inert(remark) for remark in found.remarks],
        "unclear": [inert(reason) for reason in found.reasons],
        "unseen": [inert(what) for what in found.unseen],
        "loops": [
            {
                "tid": tid,
                "thread": inert(loop.thread.name),
                "role": loop.thread.role,
                "seen": loop.seen,
                "seen_in_loop": loop.at_home,
                "away_at_most_ns": loop.longest_ns,
            }
            for tid, loop in sightings.loops.items()
        ],
        "bql_wait": {
            "at_least_ns": sightings.lock_wait.at_least_ns,
            "tid": sightings.lock_wait.thread.tid if sightings.lock_wait.thread else None,
        },
        "qmp": {
            "commands": found.commands,
            "slowest": {"name": inert(found.slowest[0]), "took_ns": found.slowest[1]}
            if found.slowest
            else None,
        },
        "block_requests": {
            "most_in_flight": found.in_flight[0] if found.in_flight else None,
            "looks": found.in_flight[1] if found.in_flight else 0,
        },
        "processors": {
            role: {"threads": got.threads, "ran_ns": got.ran_ns, "waited_ns": got.waited_ns}
            if (got := sightings.processors(role))
            else None
            for role in ("main", "vcpu", "iothread")
        },
        "deep": asdict(found.deep) if found.deep else None,
        "next": next_step(found),
    }


@dataclass(frozen=True)
class Line:
    """Of an answer: ``need`` is 0 of what is always told, and the higher the sooner it goes."""

    need: int
    text: str
    kind: str = ""
    style: str = ""

    def print(self, console: Console) -> None:
        if self.kind:
            tell(console, self.kind, self.style, self.text)
        else:
            say(console, self.text, self.style)


def print_checked(console: Console, found: Checked) -> None:
    """What is wrong, the worst first, or that nothing is; the numbers; what to type next.

    At most ``LINES``, and beside them those of ``--deep``.
    """
    next_line = Line(0, f"next: {next_step(found)}")
    lines = [_head(found), *_wrong(found), *_what_else(found), next_line]
    *above, below = fitting(lines, LINES)
    for line in above:
        line.print(console)
    if found.deep is not None:
        for text in _deep(found.deep):
            say(console, f"  {text}")
    below.print(console)


def fitting(lines: Sequence[Line], most: int) -> list[Line]:
    """So many of them, in their order: those that are needed least are left out, and of these the
    later ones first; what is always told stays."""
    by_need = sorted(range(len(lines)), key=lambda at: (lines[at].need, at))
    kept = set(by_need[:most]) | {at for at in by_need if not lines[at].need}
    return [line for at, line in enumerate(lines) if at in kept]


def _head(found: Checked) -> Line:
    target = _target(found)
    guest = f", guest {found.name}" if found.name else ""
    seconds = f"{found.sightings.lasted_ns / 1e9:.1f} s"
    version = f" {target['version'].partition(' ')[0]}" if target["version"] else ""
    text = f"{target['program']}{version}, pid {target['pid']}{guest}, watched for {seconds}"
    return Line(0, text)


def _wrong(found: Checked) -> Iterator[Line]:
    """What is wrong, the worst first, and what cannot be told; else that it is healthy."""
    answer = found.answer
    for number in answer.told_apart[:TOLD]:
        finding = answer.findings[number]
        yield Line(0, finding.sentence, finding.kind, FINDING if finding.proof else NOTE)
        yield Line(1, f"  {finding.proof or 'one look cannot show whether it stays so'}")
        below = answer.below.get(number)
        for text in below.lines[:TOLD] if below else ():
            yield Line(2, f"    which waits for: {text}")
    for noted in found.noted[:TOLD]:
        yield Line(0, noted.sentence, noted.verdict, FINDING)
    hidden = max(len(answer.told_apart) - TOLD, 0) + max(len(found.noted) - TOLD, 0)
    if hidden:
        yield Line(0, f"and {hidden} more findings: see --format json")
    if found.reasons:
        count = len(found.reasons) - 1
        more = f" (and {count} more reason{'s' if count > 1 else ''})" if count else ""
        what = "anything else" if answer.findings or found.noted else "anything"
        sentence = f"it cannot be told whether {what} is wrong: {found.reasons[0]}{more}"
        yield Line(0, sentence, INCONCLUSIVE, NOTE)
    elif not answer.findings and not found.noted:
        yield Line(0, f"{clear_words(answer)}; every loop came back", HEALTHY, "green")


def _what_else(found: Checked) -> Iterator[Line]:
    """What is no finding, the numbers, and what was not seen."""
    for remark in found.remarks[:TOLD]:
        yield Line(3, f"  {remark}")
    if (more := len(found.remarks) - TOLD) > 0:
        yield Line(3, f"  and {more} more to know: see --format json")
    # Of what is stopped they would say that all is well.
    told = not found.held and (found.noted or not found.answer.findings)
    for line in _numbers(found) if told else []:
        yield Line(4, f"  {line}")
    for what in found.unseen:
        yield Line(0, f"  not seen: {what}", style=NOTE)


def next_step(found: Checked) -> str:
    """What to type now."""
    pid, verdict = found.process.pid, found.verdict
    if verdict == HEALTHY:
        crowded = found.sightings.processors("vcpu")
        if crowded and crowded.waited_ns > CROWDED * found.sightings.lasted_ns * crowded.threads:
            return "find who else uses the host's processors (top): the guest waits for them"
        return f"qtrace attach --pid {pid} --all --duration 2s -o all.parquet, if it is slow now"
    if verdict == INCONCLUSIVE and found.held:
        return (
            f"let it go on (kill -CONT {pid}, end its tracer, or thaw its cgroup), and check again"
        )
    if verdict == INCONCLUSIVE:
        if found.unseen:
            return f"qtrace doctor --pid {pid} says what is missing"
        return f"qtrace inspect --pid {pid} shows what is known of it"
    if verdict == COMPUTES:
        return f"qtrace inspect --pid {pid} --gdb shows where it computes"
    if verdict == SLOW and "group" in found.noted[0].facts:
        return "see whether its limits are meant (QMP query-block; block_set_io_throttle)"
    if verdict == SLOW and "cgroup" in found.noted[0].facts:
        facts = found.noted[0].facts
        return f"see whether that is meant: {facts['setting']} of cgroup {facts['cgroup']}"
    if verdict == SLOW:
        return f"qtrace attach --pid {pid} -o trace.csv, then qtrace analyze trace.csv"
    if verdict == STOPPED:
        return "see to the cause (query-block, the guest's console, QEMU's log); then QMP cont"
    if found.answer.findings:
        return (
            f"qtrace autopsy --pid {pid} -o {pid}.autopsy, before you kill it; then qtrace inspect"
        )
    return f"qtrace attach --pid {pid} -o trace.csv, then qtrace explain trace.csv"


def print_host(console: Console, found: Sequence[OneOfMany]) -> None:
    """A line for each QEMU, as wide as the terminal."""
    width = max(len(one.verdict) for one in found)
    for one in found:
        guest = f" {one.guest}" if one.guest else ""
        line = inert(f"{one.verdict:{width}}  {one.pid}{guest}: {_in_short(one)}")
        text = Text(line, style="", no_wrap=True, overflow="ellipsis")
        text.stylize("green" if one.verdict == HEALTHY else FINDING, 0, width)
        console.print(text)
    worst = next((one for one in found if one.verdict != HEALTHY), None)
    if worst is not None:
        say(console, f"next: qtrace check --pid {worst.pid}")


def _in_short(one: OneOfMany) -> str:
    known = one.answer
    if "error" in known:
        return str(known["error"])
    for key in ("findings", "noted"):
        if known[key]:
            return str(known[key][0]["sentence"])
    if known["unclear"]:
        return str(known["unclear"][0])
    away = max((loop["away_at_most_ns"] for loop in known["loops"]), default=0)
    # A guest may stand still though nothing of QEMU's is wrong.
    also = f"; {known['remarks'][0]}" if known["remarks"] else ""
    return f"every loop came back within {show(away, 'ns')}{also}"


def _numbers(found: Checked) -> list[str]:
    sightings = found.sightings
    lines = []
    loops = list(sightings.loops.values())
    main = [loop for loop in loops if loop.thread.role == "main"]
    others = [loop for loop in loops if loop.thread.role != "main"]
    lines += [f"main loop: {loop_in_words(loop, _ran(loop, sightings))}" for loop in main]
    if others:
        worst = max(others, key=lambda loop: loop.longest_ns)
        count = "1 IOThread" if len(others) == 1 else f"{len(others)} IOThreads, the worst"
        lines.append(
            f"{count} ({worst.thread.name}): {loop_in_words(worst, _ran(worst, sightings))}"
        )
    wait = sightings.lock_wait
    if found.looker.layout.bql != 0:
        longest = f"{show(wait.at_least_ns, 'ns')} ({wait.thread.label})" if wait.thread else "none"
        lines.append(f"longest wait for the BQL that was seen: {longest}")
    if at_work := list(_at_work(found)):
        lines.append("; ".join(at_work))
    vcpus = sightings.processors("vcpu")
    if vcpus is not None:
        lines.append(_shares(vcpus, sightings.lasted_ns))
    return lines


def _at_work(found: Checked) -> Iterator[str]:
    """What QEMU had to do."""
    if found.in_flight is not None:
        most, looks = found.in_flight
        yield f"block requests in flight: {most} at most in {looks} looks"
    if found.commands is not None:
        slow = (
            f", the slowest {found.slowest[0]} {show(found.slowest[1], 'ns')}"
            if found.slowest
            else ", each answered within 10 ms"
            if found.commands
            else ""
        )
        yield f"QMP commands: {found.commands}{slow}"


def _deep(deep: Deep) -> Iterator[str]:
    """What a second of ``--all`` shows, and what it cost."""
    second = show(deep.lasted_ns, "ns")
    cost = f"{100 * deep.events * deep.cost_ns / deep.lasted_ns:.2g} % of a processor"
    lost = f", {deep.lost:,} of them lost" if deep.lost else ""
    longest = ""
    if deep.longest is not None:
        name, took, thread = deep.longest
        longest = f"; the longest callback: {name} {show(took, 'ns')} on {thread}"
    yield f"every bottom half for {second}: {deep.events:,} events{lost}, cost {cost}{longest}"
    if not deep.findings:
        yield f"nothing found in it by {deep.lints} lints"
    for one in deep.findings[:TOLD_OF_LINTS]:
        yield f"{one['lint']}: {one['sentence']}"
    if len(deep.findings) > TOLD_OF_LINTS:
        yield f"and {len(deep.findings) - TOLD_OF_LINTS} more findings of lints: see --format json"


def _ran(loop: Loop, sightings: Sightings) -> float:
    return sightings.ran_ns(loop.thread.tid) / max(sightings.lasted_ns, 1)


def loop_in_words(loop: Loop, ran: float) -> str:
    """How often a loop was seen in its poll, for how long not, and that it was busy where it was.

    Args:
        ran: the share of the time for which its thread had a processor.
    """
    share = f"seen in its poll {loop.at_home} of {loop.seen} times"
    text = f"{share}, {show(loop.longest_ns, 'ns')} at most from one to the next"
    # One that comes back, and finds something to do each time, does not hang.
    return f"{text}; it ran {100 * ran:.0f} % of the time" if ran >= BUSY else text


def _shares(got: Processors, lasted_ns: int) -> str:
    whole = max(got.threads * lasted_ns, 1)
    what = "1 vCPU thread" if got.threads == 1 else f"{got.threads} vCPU threads"
    ran, waited = 100 * got.ran_ns / whole, 100 * got.waited_ns / whole
    return f"{what}: ran {ran:.0f} %, waited for a processor of the host {waited:.0f} %"


def _target(found: Checked) -> dict[str, Any]:
    process = found.process
    return {
        "pid": process.pid,
        "program": inert(process.program),
        "version": process.version,
        "build_id": process.binary.elf.build_id,
    }
