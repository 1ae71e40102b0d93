"""A thread that stays in one AIO_WAIT_WHILE() while bottom halves wait for it."""

from __future__ import annotations

from qtrace.analysis.lint import Finding, Lint, Seen, Threshold, show
from qtrace.analysis.occurrences import who
from qtrace.analysis.stacks import functions, judge_wait
from qtrace.analysis.traces import AnalysedTrace

FRAMES = 4


def check(trace: AnalysedTrace, threshold: Threshold) -> Seen:
    """Looks (``blocked`` rows) at the same thread in the same frames of the same poll.

    Whether it returned in between cannot be seen, but the stack pointer and the pc it sleeps
    at are equal too.
    """
    events = trace.events
    looks = events[((events["event"] == "blocked") & (events["context"] != "")).to_numpy()]
    place = looks["detail"].astype(str).str.extract(r'"waits_at":(\[[^]]*\])', expand=False)
    looks = looks.assign(place=place.fillna(""))
    findings = []
    for _key, part in looks.groupby(["tid", "stack", "place", "context"], observed=True):
        first, last = part.iloc[0], part.iloc[-1]
        lasted = int(last["time_ns"] - first["time_ns"])
        stack = functions(last["stack"])
        if lasted < threshold.value or judge_wait(last["stack"]) == 0:
            continue
        waits = " <- ".join(stack[judge_wait(last["stack"]) + 1 :][:FRAMES])
        names = sorted({str(name) for name in part["name"]})
        thread = who(last["role"], last["thread"], int(last["tid"]))
        findings.append(
            Finding(
                "stuck-wait", trace,
                f"{thread} polled `{last['context']}` for {show(lasted, 'ns')} or longer in"
                f" {waits}, while {', '.join(names)} waited for it",
                names[0], str(last["context"]), int(last["tid"]), str(last["thread"]),
                str(last["role"]), int(last["time_ns"]), lasted, "ns",
                (int(first["row"]), int(last["row"])), len(part), "error",
                facts={"waits": stack[judge_wait(last["stack"]) + 1 :], "pending": names},
            )
        )  # fmt: skip
    return Seen(findings, (), {"looks": len(looks)})


LINT = Lint(
    name="stuck-wait",
    sentence="a thread stays in one AIO_WAIT_WHILE() while bottom halves wait for it",
    threshold=Threshold(1e9, "ns"),
    why="how long the same wait is seen; a drain of a healthy disk takes milliseconds",
    needs="",
    evidence="the first and the last look at the thread, with its whole stack",
    source="4720cbeea1, 6690302b84, 91ba0e1c38; Proxmox savevm-async, March 2025",
    check=check,
)
