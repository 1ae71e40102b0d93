"""What `judge` returns, and `qtrace analyze --format json` prints: its parts, by their types.

Times are nanoseconds of CLOCK_MONOTONIC. Stacks are functions, leaf first, and frames are positions
in these.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from qtrace.analysis.distribution import Percentiles


class Evidence(TypedDict):
    """Rows of a file that prove something; ``trace`` is None when the file was not kept."""

    trace: str | None
    rows: list[int]


class VerdictFinding(TypedDict):
    """An instance whose verdict is a finding; ``polls`` and ``sentence`` of a stranded one.
    ``instance`` is None where only some bottom halves were read."""

    verdict: str
    instance: int | None
    thread: str
    role: str
    tid: int | None
    context: str
    time_ns: int | None
    scheduled_ns: int | None
    scheduled_by_tid: int | None
    scheduled_by_thread: str
    scheduled_by_role: str
    scheduled_stack: list[str]
    stack: list[str]
    deciding_frame: int
    device_frame: int | None
    polls: NotRequired[str | None]
    sentence: NotRequired[str]
    evidence: Evidence


class BottomHalf(TypedDict):
    """A bottom half that is judged: ``verdicts`` counts its instances."""

    name: str
    scheduled: int
    verdict: str
    verdicts: dict[str, int]
    notes: list[str]
    findings: list[VerdictFinding]


class ThreadAway(TypedDict):
    """A loop's thread that did not come back; ``over_ns`` is None where it was not seen to."""

    tid: int
    thread: str
    role: str
    sentence: str
    waits: list[str]
    command: str | None
    polls: str | None
    first_ns: int
    last_ns: int
    at_least_ns: int
    over_ns: int | None
    came_back: bool
    stack: list[str]
    evidence: Evidence


class Held(TypedDict):
    """A time for which somebody held the target."""

    why: str
    since_ns: int
    at_least_ns: int
    released_ns: int | None
    sentence: str
    evidence: Evidence


class CallStack(TypedDict):
    """One of the commonest stacks of a call; ``tid`` is of its first."""

    role: str
    thread: str
    tid: int
    count: int
    stack: list[str]


class Call(TypedDict):
    """A watched function: how often it was called, on which kind of thread, from where."""

    name: str
    count: int
    roles: dict[str, int]
    stacks: list[CallStack]


class LateReply(TypedDict):
    """QMP commands whose answer existed long before it was sent (``late_replies``)."""

    command: str
    count: int
    taken_ns: int
    done_after_ns: int
    replied_after_ns: int
    waited_for: str
    ran_ns: int
    tid: int
    thread: str
    role: str


class Scheduler(TypedDict):
    """A function, on threads of one name and role, that scheduled a bottom half."""

    caller: str
    role: str
    thread: str
    threads: int
    tid: int
    count: int


class LongRun(TypedDict):
    """One of the longest runs of a bottom half."""

    duration_ns: int
    time_ns: int
    since_start_ns: int
    row: int
    role: str
    thread: str
    tid: int
    stack: list[str]


class Statistics(TypedDict):
    """What a bottom half of an `--all` recording did in one context."""

    name: str
    context: str
    scheduled: int
    ran: int
    cancelled: int
    coalesced: int
    wait: Percentiles | None
    duration: Percentiles | None
    roles: dict[str, int]
    scheduled_by: list[Scheduler]
    longest: list[LongRun]


class RanElsewhere(TypedDict):
    """A bottom half of an `--all` recording that ran on threads that do not own its context.

    ``count`` of ``runs`` did; ``role``, ``thread``, ``tid`` are of the thread that ran most of
    them, of ``threads``. ``awaited``: what such a poll waits for.
    """

    name: str
    context: str
    verdict: str
    count: int
    runs: int
    role: str
    thread: str
    tid: int
    threads: int
    awaited: bool


class LintFinding(TypedDict):
    """``Finding.as_dict``."""

    sentence: str
    level: str
    name: str
    context: str
    tid: int
    thread: str
    role: str
    time_ns: int
    value: float
    unit: str
    count: int
    instance: int | None
    facts: dict[str, Any]
    evidence: Evidence


class LintAnswer(TypedDict):
    """``LintResult.as_dict``, and whether it counts for the exit status."""

    asked: bool
    lint: str
    trace: str | None
    result: str
    reason: str
    threshold: str | None
    findings: list[LintFinding]
    facts: dict[str, Any]


class TraceFacts(TypedDict):
    """A recording that was judged."""

    path: str | None
    target: dict[str, Any]
    recorder: str
    wall_clock: str
    complete: bool
    lost_events: int
    exit: dict[str, Any] | None
    silent: list[str]
    by_all: list[str]


class Report(TypedDict):
    """The verdict over one or several recordings."""

    verdict: str
    complete: bool
    lost_events: int
    target: dict[str, Any]
    stuck: list[ThreadAway]
    computing: list[ThreadAway]
    held: list[Held]
    notes: list[str]
    bottom_halves: list[BottomHalf]
    calls: list[Call]
    late_replies: list[LateReply]
    elsewhere: list[list[RanElsewhere]]
    statistics: list[list[Statistics]]
    lints: list[LintAnswer]
    traces: list[TraceFacts]
    warnings: list[str]


class Meanwhile(TypedDict):
    """A bottom half, on threads of one name and role, that ran or waited between two times."""

    name: str
    role: str
    thread: str
    tid: int | None
    count: int
    total_ns: int
    longest_ns: int


class TimelineCommand(TypedDict):
    """A QMP command; a time is None where no row tells.

    ``inside`` ran on its thread from its begin to its end (inside a nested poll of it),
    ``before_reply`` from there to its reply; ``waited`` was scheduled meanwhile for the main loop,
    and ran after. ``took_ns`` is at least that long where it has not ``ended``; ``sure`` is false
    where a step may have been lost. ``looks`` are sentences of looks at its thread.
    """

    number: int
    name: str
    tid: int
    thread: str
    role: str
    taken_ns: int | None
    begun_ns: int | None
    ended_ns: int | None
    replied_ns: int | None
    took_ns: int | None
    ended: bool
    sure: bool
    inside: list[Meanwhile]
    before_reply: list[Meanwhile]
    waited: list[Meanwhile]
    guest_stopped_ns: int
    looks: list[str]


class TimelineJob(TypedDict):
    """A job; ``inside`` ran on the main thread, or with the BQL, until it was concluded."""

    name: str
    status: str
    first_ns: int
    created_ns: int | None
    running_ns: int | None
    concluded_ns: int | None
    dismissed_ns: int | None
    last_ns: int
    inside: list[Meanwhile]
    guest_stopped_ns: int


class Timeline(TypedDict):
    """The commands and jobs of one trace, which began at ``began_ns``."""

    path: str
    began_ns: int
    commands: list[TimelineCommand]
    jobs: list[TimelineJob]
