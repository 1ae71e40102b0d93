"""One QEMU checked: looks at both ends, sightings and a watching recording in between.

Nothing on a hot path is probed and nothing is stopped. What hangs already is told after
``HUNG_S``; what seems to hang at the end is looked at until it has lasted as long.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from qtrace.check.deep import Deep, look_deep
from qtrace.check.sightings import Sightings
from qtrace.check.watching import Watching, load
from qtrace.errors import NoSuchProcess, QtraceError
from qtrace.inspection.answer import Answer, waiting_words
from qtrace.inspection.inspector import Inspector
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_proof import RequestFinding, RequestProof, RequestWatch
from qtrace.inspection.surroundings import late_vcpus
from qtrace.process.process import Process, unless_it_ends
from qtrace.qemu.aio.findings import COMPUTES, REQUEST_STUCK, SEVERITY, STUCK, Finding
from qtrace.qemu.block.remarks import FAULTS, PAUSED, RUNNING, throttled
from qtrace.qemu.block.requests import count_in_flight
from qtrace.units import show

# A loop that is away for less may come back on a busy host: it is no finding of a check.
# The time that the host left its threads without a processor does not count, up to a limit.
HUNG_S, HUNG_CROWDED_S = 2.0, 10.0
# A command that keeps the main loop for so long is one: to a person at a console that is a hang.
SLOW_NS = 1_000_000_000
# A request that is in flight for so long is one: guests wait for no disk half a minute. So is a
# vCPU thread that sleeps for so long, and not as its guest has nothing to do.
SLOW_REQUEST_NS = SLOW_VCPU_NS = 5_000_000_000
# A cgroup's quota that held its threads back in periods of so large a part of the time is one, too.
SLOW_QUOTA = 0.5
# A sighting of a thread takes some 0.1 ms of a processor.
EVERY_S = 0.05
HEALTHY, INCONCLUSIVE, SLOW, STOPPED = "healthy", "inconclusive", "slow", "paused"
# What a recording, or a look in between, shows and the last looks do not, the worst first. A bottom
# half that was stranded when the recording ended either is by the last looks, too, or was not for
# ``HUNG_S``.
RECORDED = (STUCK, REQUEST_STUCK, STOPPED, "vcpu-poll", "foreign-poll", SLOW)
# Every verdict, the worst first.
RANKING = (*(kind for kind in SEVERITY if kind != COMPUTES), *RECORDED[2:], COMPUTES, INCONCLUSIVE,
           HEALTHY)  # fmt: skip


@dataclass(frozen=True)
class Noted:
    """Something that went wrong meanwhile: ``verdict`` is one of ``RECORDED``."""

    verdict: str
    sentence: str
    facts: dict[str, Any]


@dataclass
class Checked:
    """The answer.

    Attributes:
        process, looker: what was looked at.
        name: the guest's (-name), empty when it has none.
        answer: what looks show at the end: what ``qtrace inspect`` says.
        sightings: how long loops were away, who waited for the BQL and for processors.
        noted: what the recording shows and is over, or was only seen to happen, the worst first.
        reasons: why it cannot be told whether something (else) is wrong.
        remarks: what is no finding, in words.
        unseen: what was not looked at, and why, in words.
        commands: how many QMP commands were taken; None without a recording.
        slowest: name and nanoseconds, from taken to answered, of the one that took longest; None
            where none took 10 ms (such have no rows).
        in_flight: how many block requests at most, and in how many looks; None where that was not
            looked at, or cannot be told.
        deep: what a second of ``--all`` shows, where that was asked for.
    """

    process: Process
    looker: Looker
    name: str
    answer: Answer
    sightings: Sightings
    noted: list[Noted] = field(default_factory=list)
    reasons: list[str] = field(init=False)
    remarks: list[str] = field(init=False)
    unseen: list[str] = field(default_factory=list)
    commands: int | None = None
    slowest: tuple[str, int] | None = None
    in_flight: tuple[int, int] | None = None
    deep: Deep | None = None

    def __post_init__(self) -> None:
        self.reasons = list(self.answer.reasons)
        self.remarks = list(self.answer.remarks)

    @property
    def held(self) -> str:
        """Why nothing in it can move (a signal, a tracer, its cgroup); empty while it can."""
        return _held(self.answer)

    def add(self, noted: Iterable[Noted]) -> None:
        """What went wrong meanwhile."""
        both = [*self.noted, *noted]
        self.noted = sorted(both, key=lambda one: RECORDED.index(one.verdict))

    @property
    def verdict(self) -> str:
        """The worst of what was found; else ``inconclusive`` or ``healthy``."""
        kinds = sorted((one.kind for one in self.answer.findings), key=SEVERITY.index)
        found = [kind for kind in kinds if kind != COMPUTES]
        found += [one.verdict for one in self.noted]
        found += [kind for kind in kinds if kind == COMPUTES]
        return found[0] if found else INCONCLUSIVE if self.reasons else HEALTHY


class RequestsMeanwhile:
    """The requests between the first looks and the last ones: how many, and those that are stuck.

    Args:
        over_ns: longer than they are looked at.

    Attributes:
        most: in flight at once; None where that cannot be told.
        looks: how often they were looked at.
    """

    def __init__(self, inspector: Inspector, over_ns: int) -> None:
        self._looker = inspector.looker
        self._watch = RequestWatch(inspector.requests, over_ns)
        # By the first request of each.
        self._stuck: dict[tuple[int, ...], RequestFinding] = {}
        self._last: RequestProof | None = None
        # Since when each was there in every look, by what throttle groups hold back.
        self._throttled_ns: dict[tuple[int, ...], int] = {}
        self.most: int | None = 0
        self.looks = 0

    def see(self) -> None:
        """Look at them if it is time to. Raises NoSuchProcess."""
        if not self._watch.due(time.monotonic_ns()):
            return
        self._last = proof = self._watch.see(self._looker.look())
        for finding in proof.findings:
            self._stuck[finding.requests[0].key] = finding
        held = chain.from_iterable(throttled(proof.last.blocks).values())
        now_ns = proof.last.time_ns
        self._throttled_ns = {o.key: self._throttled_ns.get(o.key, now_ns) for o in held}
        count = count_in_flight(proof.last.blocks)
        self.looks += 1
        self.most = None if self.most is None or count is None else max(self.most, count)

    def over(self, answer: Answer) -> list[Noted]:
        """Those that have gone on since, as an answer shows."""
        there = {one.key for one in answer.requests.causes} if answer.requests else set()
        return [
            Noted(REQUEST_STUCK,
                  f"{one.sentence}, for {show(one.at_least_ns, 'ns')} at least, then it went on",
                  {"lasted_ns": one.at_least_ns})
            for key, one in self._stuck.items()
            if key not in there
        ] + self._slow(there) + self._held_back(answer)  # fmt: skip

    def _held_back(self, answer: Answer) -> list[Noted]:
        """Of each throttle group the request that is there in all looks, the longest of all."""
        if answer.requests is None:
            return []
        now_ns = answer.requests.time_ns
        noted = []
        for group, held in throttled(answer.requests.blocks).items():
            known = [one for one in held if one.key in self._throttled_ns]
            first = min(known, key=lambda one: self._throttled_ns[one.key], default=None)
            over_ns = now_ns - self._throttled_ns[first.key] if first is not None else 0
            if first is not None and over_ns >= SLOW_REQUEST_NS:
                text = f"{first.where}: held back by throttle group {group}, in each look over "
                text += f"{show(over_ns, 'ns')}: this one, or others like it"
                noted.append(Noted(SLOW, text, {"lasted_ns": over_ns, "group": group}))
        return noted

    def _slow(self, there: Collection[tuple[int, ...]]) -> list[Noted]:
        """Of those that are still there who has been so since long."""
        if self._last is None:
            return []
        last = self._last.last
        return [
            Noted(SLOW, waiting_words(last, one), {"lasted_ns": one.over_ns})
            for one in self._last.waiting
            if one.same and one.over_ns >= SLOW_REQUEST_NS and one.one.key in there
        ]


def check(
    pid: int,
    for_s: float,
    asked: Callable[[], bool] = lambda: False,
    *,
    record: bool = True,
    deep: bool = False,
) -> Checked:
    """Check a QEMU for some seconds.

    Args:
        record: QMP commands and snapshot jobs, too.
        deep: every bottom half for at most a second, too (check/deep.py).
        for_s: in all; on a busy host, where the beginning takes long, it is watched for half of it.
        asked: whether somebody wants the answer now.

    Raises:
        QtraceError: it cannot be looked at, or has ended meanwhile.
    """
    until = time.monotonic() + for_s
    program = load() if record else None
    process = Process(pid)
    with unless_it_ends(pid), tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        name = process.vm_name()
        looker = Looker(LiveQemu(process))
        first = looker.look()
        inspector = Inspector(looker)
        sightings = Sightings(looker, first)
        answer = inspector.ask(first).answer
        if _hangs(answer):
            answer = _lasting(inspector, sightings, time.sleep, answer, asked)
        elif _held(answer):
            _go_on(sightings, time.sleep, time.monotonic() + HUNG_S, asked)
            answer = inspector.ask().answer
        if _hangs(answer) or _held(answer):
            # A recording would add nothing.
            return Checked(process, looker, name, answer, sightings.ended())
        path = Path(folder, "check.csv")
        with Watching(pid, path, program) as watching:
            sightings = Sightings(looker, looker.look())
            requests = RequestsMeanwhile(inspector, round(2e9 * for_s))
            last = max(until, time.monotonic() + for_s / 2)
            _go_on(sightings, watching.wait, last, asked, requests.see)
            answer = inspector.ask().answer
            answer = _lasting(inspector, sightings, watching.wait, answer, asked)
            found = Checked(process, looker, name, answer, sightings.ended())
            if watching.stop():
                _read(found, path)
            found.add(requests.over(answer))
            _add_stopped(found)
            _add_standing_still(found)
            _add_held_back(found)
            if requests.most is not None and requests.looks:
                found.in_flight = requests.most, requests.looks
        found.unseen += [watching.unseen] if watching.unseen else []
        if deep and program is not None:
            _look_deep(found, Path(folder), asked)
        return found


def _add_stopped(found: Checked) -> None:
    """That a fault has stopped the guest, where nothing of QEMU's is stuck."""
    requests = found.answer.requests
    state = requests.blocks.run_state if requests else ""
    if state in FAULTS and not found.answer.findings:
        found.add([Noted(STOPPED, PAUSED[state], {"run_state": state})])
        found.remarks.remove(PAUSED[state])


def _add_standing_still(found: Checked) -> None:
    """The vCPU threads that sleep though their guest runs, and nothing of QEMU's is stuck."""
    requests = found.answer.requests
    if found.answer.findings or requests is None or requests.blocks.run_state != RUNNING:
        return
    for thread, lasted_ns, text in late_vcpus(found.looker, requests.look, found.sightings.first):
        if lasted_ns >= SLOW_VCPU_NS:
            found.add([Noted(SLOW, text, {"tid": thread.tid, "lasted_ns": lasted_ns})])
            about = f"vCPU thread {thread.label} "
            found.remarks = [one for one in found.remarks if not one.startswith(about)]


def _add_held_back(found: Checked) -> None:
    """That its cgroup does not let it run as much as it wants to."""
    for one in found.sightings.held_back[:1]:
        if one.times * one.period_ns >= SLOW_QUOTA * found.sightings.lasted_ns:
            text = (
                f"its cgroup {one.cgroup} lets it have {one.processors:.2g} of a processor "
                f"({one.setting}), and held it back in {one.times} of {one.periods} periods of "
                f"{show(one.period_ns, 'ns')}"
            )
            found.add([Noted(SLOW, text, {"cgroup": one.cgroup, "setting": one.setting})])


def _look_deep(found: Checked, folder: Path, asked: Callable[[], bool]) -> None:
    try:
        found.deep = look_deep(found.process.pid, folder, asked)
    except NoSuchProcess:
        raise
    except QtraceError as error:
        found.unseen.append(f"bottom halves: {error.message}")


def _hangs(answer: Answer) -> bool:
    """Whether looks find more than a thread that computes, which may come back."""
    return any(finding.kind != COMPUTES for finding in answer.findings)


def _held(answer: Answer) -> str:
    return answer.requests.look.held if answer.requests else ""


def _lasting(
    inspector: Inspector,
    sightings: Sightings,
    wait: Callable[[float], None],
    answer: Answer,
    asked: Callable[[], bool],
) -> Answer:
    """The same, when every loop that it finds has been away for ``HUNG_S``; else what is found
    when that is over. (Of requests it is told only what has lasted.)"""
    while True:
        away_s = [
            sightings.away_ns(finding.thread.tid) / 1e9
            for finding in answer.findings
            if isinstance(finding, Finding) and finding.thread.tid in sightings.loops
        ]
        if not away_s:
            return answer
        own_s = min(away_s) * (1 - sightings.crowding())
        left_s = min(HUNG_S - own_s, HUNG_CROWDED_S - min(away_s))
        if left_s <= 0 or asked():
            return answer
        _go_on(sightings, wait, time.monotonic() + left_s, asked)
        answer = inspector.ask().answer


def _go_on(
    sightings: Sightings,
    wait: Callable[[float], None],
    until: float,
    asked: Callable[[], bool],
    see_more: Callable[[], None] = lambda: None,
) -> None:
    """Raises NoSuchProcess when the target has ended."""
    while (now := time.monotonic()) < until and not asked():
        wait(min(until - now, EVERY_S))
        sightings.see()
        see_more()


def _read(found: Checked, path: Path) -> None:
    """Add what the recording shows."""
    if (detach := _only_end(path)) is not None:
        found.commands = detach["qmp"]["commands"]
        return
    # pandas takes half a second of a processor to load.
    from qtrace.analysis import judge, open_traces

    trace = open_traces(path)[0]
    report = judge(trace)
    findings = found.answer.findings
    now = {finding.thread.tid for finding in findings if isinstance(finding, Finding)}
    crowding = found.sightings.crowding()
    noted: list[Noted] = []
    for away in report["stuck"]:
        lasted_ns = away["at_least_ns"]
        if away["tid"] in now or lasted_ns < HUNG_S * 1e9:
            continue
        sentence = f"{away['sentence']}, for {show(lasted_ns, 'ns')}, then it went on"
        if lasted_ns * (1 - crowding) < HUNG_S * 1e9 and lasted_ns < HUNG_CROWDED_S * 1e9:
            waited = f"{100 * crowding:.0f} % of the time for a processor of the host"
            found.remarks.append(f"{sentence}; but threads of it waited {waited}")
            continue
        facts = {"tid": away["tid"], "lasted_ns": lasted_ns, "command": away["command"]}
        noted.append(Noted(STUCK, sentence, facts))
    for half in report["bottom_halves"]:
        noted += [
            Noted(one["verdict"], _ran(half["name"], one), {"tid": one["tid"]})
            for one in half["findings"][:1]
            if one["verdict"] in RECORDED and one["tid"] not in now
        ]
    slow = [
        (HUNG_S * 1e9, Noted(SLOW, one["sentence"], {
            "tid": one["tid"], "lasted_ns": one["at_least_ns"], "command": one["command"]}))
        for one in report["computing"]
        if one["tid"] not in now and one["at_least_ns"] >= HUNG_S * 1e9
    ]  # fmt: skip
    told = {one.facts.get("command") for one in (*noted, *(one for _, one in slow))}
    slow += [
        (SLOW_NS, Noted(SLOW, one["sentence"], {"tid": one["tid"], "lasted_ns": int(one["value"])}))
        for lint in report["lints"]
        for one in lint["findings"]
        if one["value"] >= SLOW_NS and f"QMP {one['name']}" not in told
    ]
    for allowed_ns, one in slow:
        # Of one that was ready to run QEMU is not to blame.
        waited_ns = found.sightings.waited_ns(one.facts["tid"])
        if one.facts["lasted_ns"] - waited_ns >= allowed_ns:
            noted.append(one)
        else:
            waited = f"{show(waited_ns, 'ns')} for a processor of the host in all"
            found.remarks.append(f"{one.sentence}; but that thread waited {waited}")
    found.add(noted)
    if not found.answer.findings:
        # Else they are the same, seen by the recorder.
        found.reasons += report["notes"]
    found.reasons += [one["sentence"] for one in report["held"]]
    if report["lost_events"]:
        found.unseen.append(f"{report['lost_events']} events of the recording, which were lost")
    found.commands = int(trace.file.detach.get("qmp", {}).get("commands", 0))
    commands = trace.commands
    took = (commands["replied_ns"] - commands["taken_ns"]).dropna()
    if len(took):
        worst = int(took.to_numpy().argmax())
        name = commands["name"].loc[took.index[worst]]
        found.slowest = (str(name), int(took.iloc[worst]))


def _only_end(path: Path) -> dict[str, Any] | None:
    """The detail of a recording's last row, where it has but its first row beside it, nothing was
    lost, and no probe is in doubt: there is nothing to judge."""
    with path.open(newline="") as file:
        rows = list(islice(csv.DictReader(file), 3))
    if [row["event"] for row in rows] != ["attach", "detach"]:
        return None
    detach: dict[str, Any] = json.loads(rows[1]["detail"])
    return None if detach["lost"] or detach["silent"] else detach


def _ran(name: str, finding: Any) -> str:
    where = f"thread {finding['tid']} ({finding['thread'] or finding['role']})"
    return f"{name} ran on {where}, inside its aio_poll() of `{finding['context']}`"
