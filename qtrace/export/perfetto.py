"""A recording as a Perfetto trace, for ui.perfetto.dev and its trace processor (docs/pictures.md).

Threads have a track each, with a slice for every run, a slice around it where its stack shows that
a nested aio_poll() ran it, and an instant for every schedule, from which a flow leads to its run.
Each AioContext has a track with the times at which something was pending in it, and a counter of
how many. Findings, commands, jobs, what looks at threads showed, and lost events have tracks of
their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers
from qtrace.errors import ExtraMissing
from qtrace.export.drawing import Drawing, FindingMark, Span, lanes
from qtrace.export.groundwork import MARKS, present
from qtrace.export.output_file import check_suffix, replacing
from qtrace.export.windows import Window

try:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
        BUILTIN_CLOCK_MONOTONIC,
        BUILTIN_CLOCK_REALTIME,
        TracePacket,
        TrackDescriptor,
        TrackEvent,
    )

    from qtrace.export.packets import Column, Shape, written
except ImportError as error:
    raise ExtraMissing("perfetto", "Perfetto's library is not installed") from error

SUFFIXES = (".perfetto-trace", ".pftrace")
# All packets are of one writer, whose interned texts they share.
SEQUENCE = 1
# Texts of one packet.
INTERNED = 1 << 10
# The number of the first track.
FIRST = 1
# Where contexts stand, behind the tracks of findings and others.
CONTEXTS = 10
# What is said of a run that has no end.
ENDS = ("", "it had not returned", "not seen", "not inside the run around it")
POLL = "aio_poll"
ARGUMENTS = ("row", "verdict", "waited_ns", "opaque", "stack", "end", "rows", "sentence")


@dataclass(frozen=True)
class Exported:
    """What came of an export, in numbers.

    Attributes:
        runs, schedules: all of them.
        unended: runs that are drawn as moments: no row tells when they ended.
        flows: schedules that lead to their run.
    """

    runs: int
    unended: int
    schedules: int
    flows: int
    findings: int
    losses: int
    bytes: int


def export(drawing: Drawing, target: Path, force: bool = False) -> Exported:
    """Write a drawing as a Perfetto trace.

    Raises:
        OutputExists, OutputFailed: an earlier file is still there.
    """
    check_suffix(target, SUFFIXES)
    with replacing(target, force) as file:
        return _Writer(drawing, file).write()


class _Writer:
    """Tracks and texts first, then what happened, a window of time after the other."""

    def __init__(self, drawing: Drawing, file: io.BufferedIOBase) -> None:
        self._drawing, self._file, self._size = drawing, file, 0
        self._track = FIRST
        # The texts of each kind, by themselves; their number is what packets name.
        self._texts: dict[str, dict[str, int]] = {
            "event_names": {}, "event_categories": {}, "debug_annotation_names": {},
            "debug_annotation_string_values": {},
        }  # fmt: skip
        self._new: dict[str, list[tuple[int, str]]] = {kind: [] for kind in self._texts}
        self._argument = {name: self._text("debug_annotation_names", name) for name in ARGUMENTS}

    def write(self) -> Exported:
        drawing = self._drawing
        self._begin()
        process = self._process()
        for rank, (name, spans) in enumerate(
            (
                ("lost events", drawing.losses),
                ("looks at threads in the way", [*drawing.waits, *drawing.held]),
                ("QMP commands", drawing.commands),
                ("jobs", drawing.jobs),
            ),
            start=1,
        ):
            self._spans(process, name, rank, spans)
        threads = self._threads()
        contexts = [self._context(process, name) for name in drawing.contexts]
        open_since: list[int] = [-1] * len(contexts)
        runs = unended = schedules = flows = 0
        for window in drawing.windows():
            for place, ((context, counter), changes) in enumerate(
                zip(contexts, window.pending, strict=True)
            ):
                open_since[place] = self._pending(context, counter, open_since[place], *changes)
            # Of what is at one time the first in the file counts as the first: a flow has to begin
            # before it ends.
            more = self._marks(window, threads, [context for context, _counter in contexts])
            schedules, flows = schedules + more[0], flows + more[1]
            unended += self._runs(window, threads)
            runs += len(window.runs)
        for (context, _counter), since in zip(contexts, open_since, strict=True):
            if since >= 0:
                self._close(context, max(drawing.end_ns, since + 1))
        self._spans(process, "findings", 0, map(_as_span, drawing.findings))
        return Exported(
            runs=runs,
            unended=unended,
            schedules=schedules,
            flows=flows,
            findings=len(drawing.findings),
            losses=len(drawing.losses),
            bytes=self._size,
        )

    # Tracks

    def _begin(self) -> None:
        """The clock, by which other recordings of the host are put beside this one."""
        packet = self._packet()
        packet.sequence_flags = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        packet.trace_packet_defaults.timestamp_clock_id = BUILTIN_CLOCK_MONOTONIC
        packet.first_packet_on_sequence = True
        self._put(written(packet))
        packet = self._packet()
        wall = self._drawing.wall_clock
        snapshot = packet.clock_snapshot
        snapshot.primary_trace_clock = BUILTIN_CLOCK_MONOTONIC
        snapshot.clocks.add(clock_id=BUILTIN_CLOCK_MONOTONIC, timestamp=self._drawing.begin_ns)
        if not pd.isna(wall) and wall.value > 0:
            snapshot.clocks.add(clock_id=BUILTIN_CLOCK_REALTIME, timestamp=wall.value)
        self._put(written(packet))

    def _process(self) -> int:
        target = self._drawing.header["target"]
        pid = target.get("pid")
        packet, uuid = self._descriptor()
        packet.track_descriptor.process.pid = pid if isinstance(pid, int) and pid > 0 else 0
        name = f"{target.get('program') or 'QEMU'} {target.get('version') or ''}".strip()
        packet.track_descriptor.process.process_name = name
        packet.track_descriptor.child_ordering = TrackDescriptor.EXPLICIT
        self._pid = packet.track_descriptor.process.pid
        self._put(written(packet))
        return uuid

    def _threads(self) -> npt.NDArray[np.int64]:
        """The track of each thread."""
        found = []
        for rank, one in enumerate(self._drawing.threads):
            packet, uuid = self._descriptor()
            thread = packet.track_descriptor.thread
            thread.pid, thread.tid = self._pid, one.tid
            thread.thread_name = f"{one.name} ({one.role})" if one.role else one.name
            packet.track_descriptor.sibling_order_rank = rank
            self._put(written(packet))
            found.append(uuid)
        return np.array([*found, 0], np.int64)

    def _context(self, process: int, name: str) -> tuple[int, int]:
        """The track of a context, and that of its counter."""
        own = self._group(process, f"context {name}", CONTEXTS)
        packet, counter = self._descriptor()
        packet.track_descriptor.parent_uuid = own
        packet.track_descriptor.name = f"pending in {name}"
        packet.track_descriptor.counter.unit_name = "bottom halves"
        self._put(written(packet))
        return own, counter

    def _group(self, parent: int, name: str, rank: int) -> int:
        packet, uuid = self._descriptor()
        packet.track_descriptor.parent_uuid = parent
        packet.track_descriptor.name = name
        packet.track_descriptor.sibling_order_rank = rank
        self._put(written(packet))
        return uuid

    def _descriptor(self) -> tuple[Any, int]:
        packet = self._packet()
        packet.track_descriptor.uuid = self._track
        self._track += 1
        return packet, self._track - 1

    # Stretches

    def _spans(self, process: int, name: str, rank: int, spans: Iterable[Span]) -> None:
        """Slices: those at one time lie on several tracks, which are shown as one by their name."""
        tracks: list[int] = []
        ordered = sorted(spans, key=lambda one: (one.begin_ns, -one.end_ns))
        for lane, one in lanes(ordered):
            if lane == len(tracks):
                tracks.append(self._group(process, name, rank))
            self._span(tracks[lane], one)

    def _span(self, track: int, one: Span) -> None:
        moment = one.end_ns <= one.begin_ns
        packet = self._packet()
        packet.timestamp = one.begin_ns
        event = packet.track_event
        event.type = TrackEvent.TYPE_INSTANT if moment else TrackEvent.TYPE_SLICE_BEGIN
        event.track_uuid = track
        event.name = one.name
        for name, value in one.facts:
            event.debug_annotations.add(name=name, string_value=value)
        if one.tid:
            event.debug_annotations.add(name="tid", uint_value=one.tid)
        if one.open:
            event.debug_annotations.add(name="end", string_value="not seen")
        rows = event.debug_annotations.add(name="rows")
        for row in one.rows:
            rows.array_values.add(uint_value=row)
        self._put(written(packet))
        if not moment:
            packet = self._packet()
            packet.timestamp = one.end_ns
            packet.track_event.type = TrackEvent.TYPE_SLICE_END
            packet.track_event.track_uuid = track
            self._put(written(packet))

    # What comes by the million

    def _pending(self, context: int, counter: int, since: int, time: Numbers, count: Column) -> int:
        """The counter, and the stretches in which it is not 0.

        Args:
            since: since when it has not been 0; -1 where it is.

        Returns:
            The same at the end.
        """
        if not len(time):
            return since
        full = {"time": time, "value": count}
        self._stamp(Shape(lambda packet, one: self._fill_counter(packet, one, counter)), full)
        before = np.append(since >= 0, count[:-1] > 0)
        begin, end = time[~before & (count > 0)], time[before & (count == 0)]
        name = self._text("event_names", "pending")
        self._flush_texts()

        def fill(packet: Any, one: Mapping[str, int]) -> None:
            event = self._event(packet, one, TrackEvent.TYPE_SLICE_BEGIN, context)
            event.name_iid = name

        self._stamp(self._end_shape(context), {"time": end})
        self._stamp(Shape(fill), {"time": begin})
        if not count[-1]:
            return -1
        return int(begin[-1]) if len(begin) else since

    def _end_shape(self, context: int) -> Shape:
        def fill(packet: Any, one: Mapping[str, int]) -> None:
            self._event(packet, one, TrackEvent.TYPE_SLICE_END, context)

        return Shape(fill)

    def _close(self, context: int, time_ns: int) -> None:
        """What was pending when the recording ended."""
        self._stamp(self._end_shape(context), {"time": np.array([time_ns])})

    def _fill_counter(self, packet: Any, one: Mapping[str, int], track: int) -> None:
        event = self._event(packet, one, TrackEvent.TYPE_COUNTER, track)
        event.counter_value = one["value"]

    def _runs(self, window: Window, threads: npt.NDArray[np.int64]) -> int:
        """Every run, and the polls that ran them; how many have no end."""
        runs = window.runs
        begin, end = runs["begin_ns"].to_numpy(), runs["end_ns"].to_numpy()
        whole = runs["whole"].to_numpy()
        part = {
            "time": begin,
            "track": threads[runs["thread"].to_numpy()],
            "name": self._codes("event_names", runs["name"]),
            "context": self._names("event_categories", self._drawing.contexts)[runs["context"]],
            "verdict": self._codes("debug_annotation_string_values", runs["verdict"]),
            "stack": self._codes("debug_annotation_string_values", runs["stack"], readable),
            "row": runs["row"].to_numpy(),
            "opaque": runs["opaque"].to_numpy(),
            "waited": runs["wait_ns"].to_numpy(),
            "flow": runs["instance"].to_numpy() + 1,
        }
        poll_name = self._text("event_names", POLL)
        ends = [self._text("debug_annotation_string_values", text) for text in ENDS]
        self._flush_texts()
        polled = whole & runs["poll"].to_numpy()
        why = np.select([runs["open"], end < 0, ~whole & (end > begin)], [1, 2, 3], 0)
        form = (why * 2 + whole) * 2 + (part["waited"] >= 0)

        def poll(packet: Any, one: Mapping[str, int]) -> None:
            event = self._event(packet, one, TrackEvent.TYPE_SLICE_BEGIN)
            event.name_iid = poll_name
            event.category_iids.append(one["context"])

        def ended(packet: Any, one: Mapping[str, int]) -> None:
            self._event(packet, one, TrackEvent.TYPE_SLICE_END)

        until = {"time": end, "track": part["track"]}
        self._stamp(Shape(ended), _only(until, whole))
        self._stamp(Shape(ended), _only(until, polled))
        around = {name: part[name] for name in ("time", "track", "context")}
        self._stamp(Shape(poll), _only(around, polled))
        for one in np.unique(form).tolist():
            # An argument that is not known is not there.
            own = part if one & 1 else _without(part, "waited", "flow")
            kind = TrackEvent.TYPE_SLICE_BEGIN if one & 2 else TrackEvent.TYPE_INSTANT
            shape = self._run_shape(kind, ends[one >> 2] if one >> 2 else 0)
            self._stamp(shape, _only(own, form == one))
        return int((~whole).sum())

    def _run_shape(self, kind: Any, end: int) -> Shape:
        name = self._argument

        def fill(packet: Any, one: Mapping[str, int]) -> None:
            event = self._event(packet, one, kind)
            event.name_iid = one["name"]
            event.category_iids.append(one["context"])
            add = event.debug_annotations.add
            add(name_iid=name["row"], uint_value=one["row"])
            add(name_iid=name["verdict"], string_value_iid=one["verdict"])
            if "waited" in one:
                event.terminating_flow_ids.append(one["flow"])
                add(name_iid=name["waited_ns"], uint_value=one["waited"])
            add(name_iid=name["opaque"], pointer_value=one["opaque"])
            add(name_iid=name["stack"], string_value_iid=one["stack"])
            if end:
                add(name_iid=name["end"], string_value_iid=end)

        return Shape(fill, fixed=frozenset({"flow"}))

    def _marks(
        self, window: Window, threads: npt.NDArray[np.int64], contexts: Sequence[int]
    ) -> tuple[int, int]:
        """Schedules and other moments; how many schedules, and how many lead to a run."""
        marks = window.marks
        flows = marks["flows"].to_numpy()
        kind, thread = marks["kind"].to_numpy(), marks["thread"].to_numpy()
        # One that was only seen pending has no thread: it stands on its context's track.
        own = np.array([*contexts, 0], np.int64)[marks["context"].to_numpy()]
        part = {
            "time": marks["time_ns"].to_numpy(),
            "track": np.where(thread < 0, own, threads[thread]),
            "name": np.zeros(len(marks), np.int64),
            "context": self._names("event_categories", self._drawing.contexts)[marks["context"]],
            "stack": self._codes("debug_annotation_string_values", marks["stack"], readable),
            "row": marks["row"].to_numpy(),
            "flow": marks["instance"].to_numpy() + 1,
        }
        begins = (kind == MARKS.index("schedule")) & (marks["instance"] < 0).to_numpy()
        for number, what in enumerate((*MARKS, "schedule again")):
            mask = begins if number == len(MARKS) else (kind == number) & ~begins
            titles = self._codes("event_names", marks["name"][mask], f"{what} {{}}".format)
            part["name"][mask] = titles
        self._flush_texts()
        self._stamp(self._mark_shape(True), _only(part, flows))
        self._stamp(self._mark_shape(False), _only(_without(part, "flow"), ~flows))
        return int((kind == MARKS.index("schedule")).sum()), int(flows.sum())

    def _mark_shape(self, flow: bool) -> Shape:
        name = self._argument

        def fill(packet: Any, one: Mapping[str, int]) -> None:
            event = self._event(packet, one, TrackEvent.TYPE_INSTANT)
            event.name_iid = one["name"]
            event.category_iids.append(one["context"])
            if flow:
                event.flow_ids.append(one["flow"])
            event.debug_annotations.add(name_iid=name["row"], uint_value=one["row"])
            event.debug_annotations.add(name_iid=name["stack"], string_value_iid=one["stack"])

        return Shape(fill, fixed=frozenset({"flow"} if flow else ()))

    # Texts and packets

    def _event(self, packet: Any, one: Mapping[str, int], kind: Any, track: int = 0) -> Any:
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.sequence_flags = TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        packet.timestamp = one["time"]
        packet.track_event.type = kind
        packet.track_event.track_uuid = track or one["track"]
        return packet.track_event

    def _packet(self) -> Any:
        packet = TracePacket()
        packet.trusted_packet_sequence_id = SEQUENCE
        return packet

    def _text(self, kind: str, text: str) -> int:
        known = self._texts[kind]
        if text not in known:
            known[text] = len(known) + 1
            self._new[kind].append((known[text], text))
        return known[text]

    def _names(self, kind: str, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The numbers of some texts; the last place is that of none."""
        return np.array([*(self._text(kind, text) for text in texts), self._text(kind, "")])

    def _codes(
        self, kind: str, column: pd.Series, shown: Callable[[str], str] = str
    ) -> npt.NDArray[np.int64]:
        """The number of each row's text; texts that no row has get none."""
        codes = column.array.codes
        table = np.zeros(len(column.cat.categories) + 1, np.int64)
        for code in present(codes):
            text = str(column.cat.categories[code]) if code >= 0 else ""
            table[code] = self._text(kind, shown(text))
        found: npt.NDArray[np.int64] = table[codes]
        return found

    def _flush_texts(self) -> None:
        """Texts have to be known before the packets that name them."""
        for kind, new in self._new.items():
            for at in range(0, len(new), INTERNED):
                packet = self._packet()
                packet.sequence_flags = TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
                for number, text in new[at : at + INTERNED]:
                    one = getattr(packet.interned_data, kind).add()
                    one.iid = number
                    if kind == "debug_annotation_string_values":
                        one.str = text.encode()
                    else:
                        one.name = text
                self._put(written(packet))
            new.clear()

    def _stamp(self, shape: Shape, columns: Mapping[str, Column]) -> None:
        for packets in shape.stamp(columns):
            self._put(packets.data)

    def _put(self, packets: bytes | memoryview) -> None:
        self._size += len(packets) if isinstance(packets, bytes) else packets.nbytes
        self._file.write(packets)


def _only(columns: Mapping[str, Column], mask: npt.NDArray[np.bool_]) -> dict[str, Column]:
    return {name: column[mask] for name, column in columns.items()}


def _without(columns: Mapping[str, Column], *names: str) -> dict[str, Column]:
    return {name: column for name, column in columns.items() if name not in names}


def _as_span(one: FindingMark) -> Span:
    facts = [("sentence", one.sentence)]
    if one.instance is not None:
        facts.append(("instance", str(one.instance)))
    return Span(
        f"{one.what}: {one.name}" if one.name else one.what,
        one.begin_ns, one.end_ns, one.rows, one.tid, facts=tuple(facts),
    )  # fmt: skip


def readable(stack: str) -> str:
    """A stack of the file, leaf first."""
    return " <- ".join(reversed(stack.split(";")))
