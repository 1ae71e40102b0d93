"""Records of a raw file to the columns of a trace, a chunk at a time and without a loop per row.

Needs numpy and pyarrow. Every text is made once per distinct value and chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qtrace.event_kinds import BOTTOM_HALF, EVENT_OF_SITE, OWN_PROBE
from qtrace.knowledge import DELETED, IDLE, PENDING, SCHEDULED
from qtrace.trace.schema import PARTIAL, escape

Records = npt.NDArray[np.void]
Words = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

# A record's kind is the place of its event in here.
EVENTS: list[str] = list(BOTTOM_HALF)
OWN = [EVENTS.index(name) for name in OWN_PROBE]
SCHEDULE, RUN, RETURN, DELETE = map(EVENTS.index, ("schedule", "run", "return", "delete"))
# How aio_bh_enqueue() found it: new in the list; there already, and still to run; there, but
# cancelled in the meantime: nothing is inserted, yet it is another instance.
ENQUEUED = ("inserted", "coalesced", "requeued")
# More stack pointers of one thread's open bottom halves than that: depths are left out.
MAX_LEVELS = 32
UNKNOWN_DEPTH = -1


class RawFacts:
    """What the numbers of the records mean, collected over a whole raw file."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.names: dict[int, str] = {}
        self.symbols: dict[int, str] = {}
        self.contexts: dict[int, str] = {}
        self.threads: dict[int, tuple[str, str]] = {}
        self.return_to = str(header.get("return_to", ""))
        self.chains: dict[str, int] = {"": 0}
        self._sampled: list[tuple[int, int, int]] = []
        self._sorted: npt.NDArray[np.int64] | None = None
        self.merged = np.array(header.get("watched_callbacks", []), np.uint64)
        # A newer qtrace may have others; their records are told as unknown.
        sites = [site for site in header.get("sites", []) if site["kind"] in EVENT_OF_SITE]
        sites.sort(key=lambda site: site["ip"])
        self.ips = np.array([site["ip"] for site in sites], np.uint32)
        self.kinds = np.array(
            [EVENTS.index(EVENT_OF_SITE[site["kind"]]) for site in sites], np.int32
        )
        # Who schedules or cancels by itself: what its caller would be is inlined into it.
        self.inside = {int(site["ip"]): str(site.get("inside", "")) for site in sites}
        self.new_flags = np.array([site["new_flags"] for site in sites], np.uint32)
        # Where bottom halves pass that were not run: such a record ends no run, and is no event.
        self.shared = np.array([bool(site.get("shared")) for site in sites], bool)

    def learn(self, facts: dict[str, Any]) -> None:
        """Take a block of facts; later ones win."""
        for own, key in (
            (self.names, "names"), (self.symbols, "symbols"), (self.contexts, "contexts"),
        ):  # fmt: skip
            own.update({int(number, 16): str(text) for number, text in facts.get(key, {}).items()})
        for tid, (name, role) in facts.get("threads", {}).items():
            self.threads[int(tid)] = (str(name), str(role))
        for chain, hits in facts.get("stacks", {}).items():
            code = self.chains.setdefault(str(chain), len(self.chains))
            self._sampled += [(int(time_ns), int(tid), code) for time_ns, tid in hits]

    def whole_stacks(self, records: Records) -> Codes:
        """For each record the code in ``chains`` of its whole stack, 0 where none was copied."""
        codes = np.zeros(len(records), np.int32)
        if not self._sampled:
            return codes
        if self._sorted is None:
            table = np.array(self._sampled, np.int64)
            self._sorted = table[np.lexsort((table[:, 1], table[:, 0]))]
        times = self._sorted[:, 0]
        now, tid = records["time_ns"].astype(np.int64), records["tid"].astype(np.int64)
        at = np.searchsorted(times, now)
        # Two CPUs may have had the same nanosecond.
        for place in (at, at + 1):
            place = place.clip(max=len(times) - 1)
            hit = self._sorted[place]
            codes = np.where((hit[:, 0] == now) & (hit[:, 1] == tid), hit[:, 2], codes)
        return codes.astype(np.int32)


class RawRowMaker:
    """Makes tables of records that come in time order. Keeps the runs that are still open.

    Attributes:
        merged: rows left out because a watched bottom half's own probe has them.
        unknown: records of no known site.
    """

    def __init__(self, facts: RawFacts, slot: np.dtype[np.void]) -> None:
        self._facts = facts
        self._open: Records = np.empty(0, slot)
        self.merged = 0
        self.unknown = 0

    def table(self, records: Records) -> pa.Table:
        """One row per record, less the merged ones. Texts are dictionaries, as in the CSV."""
        facts = self._facts
        site = np.searchsorted(facts.ips, records["ip"]).clip(max=max(len(facts.ips) - 1, 0))
        known = facts.ips[site] == records["ip"] if len(facts.ips) else np.zeros(len(records), bool)
        if not known.all():
            self.unknown += int((~known).sum())
            records, site = records[known], site[known]
        kind = facts.kinds[site]
        new = np.where(facts.new_flags[site] != 0, facts.new_flags[site], records["flags"] >> 16)
        enqueue = kind == SCHEDULE
        kind[enqueue & (new & DELETED != 0) & (new & SCHEDULED == 0)] = DELETE
        records, depth, ends = self._join_runs(records, kind)
        passing = (kind == RETURN) & facts.shared[site] & ~ends
        if passing.any():
            records, kind, new, depth = (part[~passing] for part in (records, kind, new, depth))
        detail = _detail(records, kind, new, depth)
        keep = ~(np.isin(kind, OWN) & np.isin(records["callback"], facts.merged))
        if not keep.all():
            self.merged += int((~keep).sum())
            records, kind = records[keep], kind[keep]
            detail = detail.filter(pa.array(keep))
        return self._columns(records, kind, detail)

    def _join_runs(self, records: Records, kind: Codes) -> tuple[Records, Codes, Mask]:
        """Give each return what its run was about, and each run its depth; which returns end one.

        Both have the same stack pointer on the same thread; the bottom half itself may be
        freed when aio_bh_call() returns.
        """
        rows = np.flatnonzero((kind == RUN) | (kind == RETURN))
        earlier = len(self._open)
        part = np.concatenate([self._open, records[rows]])
        runs = np.concatenate([np.ones(earlier, bool), kind[rows] == RUN])
        order = np.lexsort((np.arange(len(part)), part["stack"], part["tid"]))
        ordered, ordered_runs = part[order], runs[order]
        same = np.zeros(len(part), bool)
        same[1:] = (ordered["tid"][1:] == ordered["tid"][:-1]) & (
            ordered["stack"][1:] == ordered["stack"][:-1]
        )
        # A return whose predecessor on this very spot is a run of the same bottom half.
        closes = np.flatnonzero(same & ~ordered_runs)
        closes = closes[ordered_runs[closes - 1]]
        bh = ordered["bh"]
        closes = closes[(bh[closes] == bh[closes - 1]) | (bh[closes] == 0)]
        for field in ("bh", "ctx", "name", "callback", "opaque"):
            part[field][order[closes]] = part[field][order[closes - 1]]
        depth = np.full(len(records), UNKNOWN_DEPTH, np.int32)
        levels, still_open = _depths(part, runs)
        depth[rows] = levels[earlier:]
        joined = records.copy()
        joined[rows] = part[earlier:]
        self._open = part[still_open]
        ended = np.zeros(len(part), bool)
        ended[order[closes]] = True
        ends = np.zeros(len(records), bool)
        ends[rows] = ended[earlier:]
        return joined, depth, ends

    def _columns(self, records: Records, kind: Codes, detail: pa.DictionaryArray) -> pa.Table:
        facts = self._facts
        names = _coded(records["name"], lambda pointer: facts.names.get(pointer, ""))
        name, name_text = self._names(records, names)
        stack = self._stacks(records, kind, name, name_text)
        tid = records["tid"]
        empty = ("", "")
        columns = {
            "time_ns": pa.array(records["time_ns"].astype(np.int64)),
            "event": _dictionary(kind, EVENTS),
            "tid": pa.array(tid.astype(np.int64)),
            "thread": _of(tid, lambda number: escape(facts.threads.get(number, empty)[0])),
            "role": _of(tid, lambda number: facts.threads.get(number, empty)[1]),
            "name": _dictionary(name, [escape(text) for text in name_text]),
            "context": _of(records["ctx"], lambda ctx: escape(facts.contexts.get(ctx, ""))),
            "ctx": pa.array(records["ctx"]),
            "bh": pa.array(records["bh"]),
            "callback": pa.array(records["callback"]),
            "opaque": pa.array(records["opaque"]),
            "stack": stack,
            "detail": detail,
        }
        return pa.table(columns)

    def _names(self, records: Records, names: tuple[Codes, list[str]]) -> tuple[Codes, list[str]]:
        """The name that QEMU gave it, or its callback's where that has a symbol.

        QEMU's is the text of the argument, which may be a variable's ("cb"). Before 6.1 it gave
        none: then the callback's address is the name, as in a scan.
        """
        callbacks = _coded(records["callback"], lambda a: self._facts.symbols.get(a, ""))

        def choose(name: str, symbol: str) -> str:
            if not name and "@0x" in symbol:
                return f"bh@{symbol.rpartition('@')[2]}"
            return symbol if symbol and "+0x" not in symbol and "@" not in symbol else name

        return _combine([names, callbacks], lambda texts: choose(*texts))

    def _stacks(
        self, records: Records, kind: Codes, name: Codes, name_text: list[str]
    ) -> pa.DictionaryArray:
        symbol = self._facts.symbols
        inner = _coded(records["caller"][:, 0], lambda a: symbol.get(a, ""))
        outer = _coded(records["caller"][:, 1], lambda a: symbol.get(a, ""))
        inside = _coded(records["ip"], lambda ip: self._facts.inside.get(ip, ""))
        kinds = (kind, EVENTS)
        whole = (self._facts.whole_stacks(records), list(self._facts.chains))

        def folded(texts: tuple[str, ...]) -> str:
            event, caller, beyond, within, leaf, sampled = texts
            if sampled:
                return f"{sampled};{escape(leaf or '?', extra=';')}" if event == "run" else sampled
            # Where a record has no caller, its row has no stack.
            chain = [caller, within]
            if event == "run":
                chain = [leaf or "?"]
                if caller:
                    polls = caller.split("+0x")[0] == "aio_poll"
                    chain = [beyond if polls else "", caller, self._facts.return_to, *chain]
            frames = [escape(frame, extra=";") for frame in chain if frame]
            return ";".join([PARTIAL, *frames]) if frames else ""

        codes, texts = _combine([kinds, inner, outer, inside, (name, name_text), whole], folded)
        return _dictionary(codes, texts)


def _detail(records: Records, kind: Codes, new: npt.NDArray[Any], depth: Codes) -> Any:
    """The JSON of each row: few distinct texts."""
    old = records["flags"] & 0xFFFF
    state = np.where(old & PENDING == 0, 0, np.where(old & SCHEDULED != 0, 1, 2))
    schedule = kind == SCHEDULE
    idle = (new & IDLE != 0).astype(np.int32)
    # 0: nothing; then the schedules; then the runs by depth.
    code = np.where(schedule, 1 + state * 2 + idle, 0).astype(np.int32)
    first = 1 + 2 * len(ENQUEUED)
    known = (kind == RUN) & (depth != UNKNOWN_DEPTH)
    code = np.where(known, first + depth, code).astype(np.int32)
    texts = [""]
    for text in ENQUEUED:
        texts += [f'{{"enqueue":"{text}"}}', f'{{"enqueue":"{text}","idle":true}}']
    deepest = int(depth.max(initial=0))
    texts += [f'{{"depth":{level}}}' for level in range(deepest + 1)]
    return _dictionary(code, texts)


def _depths(part: Records, runs: Mask) -> tuple[Codes, Mask]:
    """How many open runs lie around each run on its thread's stack; which are open at the end.

    A run is open until anything happens on its thread at its own stack pointer or further
    out: a return that was lost cannot make the count creep up.
    """
    depth = np.full(len(part), UNKNOWN_DEPTH, np.int32)
    still_open = np.zeros(len(part), bool)
    for tid in np.unique(part["tid"]):
        rows = np.flatnonzero(part["tid"] == tid)
        stack, run = part["stack"][rows], runs[rows]
        position = np.arange(len(rows))
        levels = np.unique(stack[run])
        own = np.zeros(len(rows), np.int32)
        for level in levels if len(levels) <= MAX_LEVELS else ():
            last = np.maximum.accumulate(np.where(stack >= level, position, -1))
            final = int(last[-1])
            if final >= 0 and run[final] and stack[final] == level:
                still_open[rows[final]] = True
            before = np.concatenate([[-1], last[:-1]])
            opened = (before >= 0) & run[before] & (stack[before] == level)
            own += opened & (stack < level)
        if len(levels) <= MAX_LEVELS:
            depth[rows] = np.where(run, own, UNKNOWN_DEPTH)
    return depth, still_open


def _coded(values: npt.NDArray[Any], text: Callable[[int], str]) -> tuple[Codes, list[str]]:
    """A code for each value, and the text of each code."""
    encoded = pa.array(values).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int32)
    return codes, [text(value) for value in encoded.dictionary.to_pylist()]


def _of(values: npt.NDArray[Any], text: Callable[[int], str]) -> pa.DictionaryArray:
    return _dictionary(*_coded(values, text))


def _combine(
    parts: list[tuple[Codes, list[str]]], text: Callable[[tuple[str, ...]], str]
) -> tuple[Codes, list[str]]:
    """One code for each combination that occurs, and its text."""
    number = np.zeros(len(parts[0][0]), np.int64)
    for codes, texts in parts:
        number = number * max(len(texts), 1) + codes
    encoded = pa.array(number).dictionary_encode()
    made = []
    for value in encoded.dictionary.to_pylist():
        chosen: list[str] = []
        for _codes, texts in reversed(parts):
            value, index = divmod(value, max(len(texts), 1))
            chosen.append(texts[index] if texts else "")
        made.append(text(tuple(reversed(chosen))))
    return encoded.indices.to_numpy().astype(np.int32), made


def _dictionary(codes: npt.NDArray[Any], texts: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int32()), pa.array(texts or [""], pa.string())
    )
