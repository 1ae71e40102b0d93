"""The rows of a raw recording, of one file or of a chain of them, as tables in time order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qtrace.errors import TraceUnreadable
from qtrace.trace.chain import ALL, KEY, OWN_ROWS, Link, label
from qtrace.trace.chain_reader import joined
from qtrace.trace.raw_reader import RawReader, Records
from qtrace.trace.raw_rows import RawFacts, RawRowMaker
from qtrace.trace.schema import COLUMNS, to_row
from qtrace.trace.table_output import plain
from qtrace.trace.table_rows import table_of_rows

# Records of one step.
CHUNK = 1 << 15
EVENT, NAME, DETAIL = (COLUMNS.index(column) for column in ("event", "name", "detail"))
Progress = Callable[[int, int], None]


class RawTables:
    """Every mark says that all earlier events are there: what is older is sorted and given out.

    What a file of a chain has of later ones, and the runs that are open then, go over into the
    next one.
    """

    def __init__(self, readers: Sequence[RawReader], progress: Progress) -> None:
        self._readers = readers
        self._progress = progress
        self._size = sum(reader.size for reader in readers)
        self.warnings: list[str] = []
        needed = {"time_ns", "ip", "tid", "bh", "ctx", "name", "callback", "opaque", "caller"}
        if not (needed | {"flags", "stack"}) <= set(readers[0].slot.names or ()):
            raise TraceUnreadable(
                f"{readers[0].path}: its header describes other records", "take the original file"
            )
        facts = RawFacts(readers[0].header)
        self._ended = False
        # Once through for what the numbers mean: a context may get its name late.
        for reader in readers:
            for block, _done in reader.blocks(CHUNK):
                facts.learn(block.facts)
                rows = block.facts.get("rows", [])
                self._ended = self._ended or any(row[EVENT] == "detach" for row in rows)
            if reader.truncated:
                self.warnings.append("its last block was cut off: what came later is not known")
        self.maker = RawRowMaker(facts, readers[0].slot)
        self._waiting: list[Records] = []
        self._rows: list[list[str]] = []
        # Of a chain: what was given out, and what the file before says of the next one.
        self._counted: Counter[str] = Counter()
        self._following: Link | None = None

    def tables(self) -> Iterator[pa.Table]:
        """Of all files, as of one. Raises TraceUnreadable where one is damaged."""
        yield from joined(self.files(), self.warnings)
        if self.maker.unknown:
            self.warnings.append(f"{self.maker.unknown} records of unknown probes were left out")

    def files(self) -> list[tuple[Path, Iterator[pa.Table]]]:
        """Of each file, one after the other, with its first and last row."""
        return [(reader.path, self._of(place)) for place, reader in enumerate(self._readers)]

    def _of(self, place: int) -> Iterator[pa.Table]:
        reader = self._readers[place]
        before = sum(one.size for one in self._readers[:place])
        last = place == len(self._readers) - 1
        seen: Counter[str] = Counter()
        link: Link | None = None
        following: Link | None = None
        for block, done in reader.blocks(CHUNK):
            if block.records is not None:
                self._waiting.append(block.records)
                seen[ALL] += len(block.records)
            for row in block.facts.get("rows", []):
                said = Link.of(json.loads(row[DETAIL])) if row[EVENT] in OWN_ROWS else None
                if said is None:
                    self._rows.append(row)
                    seen[label(row[EVENT], row[NAME])] += 1
                elif row[EVENT] == "attach":
                    link = said
                    yield self._first(said, row)
                else:
                    following = said
            if block.mark:
                yield from self._ready(block.mark)
                self._progress(before + done, self._size)
        if last:
            if not self._ended:
                # The CPUs' buffers were emptied one after the other: of what came after the last
                # mark some have more than others, and a run may be there whose schedule is not.
                self._waiting.clear()
            yield from self._ready(np.iinfo(np.int64).max)
        self._progress(before + reader.size, self._size)
        if link is None:
            return
        if following is None:
            rows = Counter(link.rows) + seen
            following = Link(link.recording, link.number + 1, link.since_ns, link.at_ns, rows)
            self._following = following
            return
        self._following = following
        yield self._last(following)

    def _first(self, link: Link, row: list[str]) -> pa.Table:
        """The first row of a file, which counts the rows before as they were made of records."""
        before, self._following = self._following, None
        if before is None:
            self._counted = Counter(link.rows)
        elif before.number != link.number:
            missing = Counter(link.rows)
            missing.subtract(before.rows)
            # What was noted after the last mark is not whole.
            missing[ALL] += sum(map(len, self._waiting))
            for left in self._rows:
                missing[label(left[EVENT], left[NAME])] += 1
            self._waiting.clear()
            self._rows.clear()
            self._counted += missing
        facts = Link(link.recording, link.number, link.since_ns, link.at_ns, self._counted).facts()
        detail = {**json.loads(row[DETAIL]), KEY: facts}
        return table_of_rows([[*row[:DETAIL], json.dumps(detail, separators=(",", ":"))]])

    def _last(self, following: Link) -> pa.Table:
        """The last row of a file."""
        counted = Link(
            following.recording, following.number, following.since_ns, following.at_ns,
            self._counted,
        )  # fmt: skip
        return table_of_rows([to_row(counted.last_row())])

    def _ready(self, mark: int) -> Iterator[pa.Table]:
        waiting, rows = self._waiting, self._rows
        records = np.concatenate(waiting) if waiting else np.empty(0, self._readers[0].slot)
        early = records["time_ns"] < np.uint64(mark)
        waiting[:] = [] if early.all() else [records[~early]]
        order = np.flatnonzero(early)
        order = order[np.argsort(records["time_ns"][order], kind="stable")]
        due = [row for row in rows if int(row[0]) < mark]
        rows[:] = [row for row in rows if int(row[0]) >= mark]
        tables = (self._made(records[order[at : at + CHUNK]]) for at in range(0, len(order), CHUNK))
        for row in due:
            self._counted[label(row[EVENT], row[NAME])] += 1
        if not due:
            yield from tables
        else:
            made = pa.concat_tables([*(plain(t) for t in tables), table_of_rows(due)])
            order = pc.sort_indices(made, sort_keys=[("time_ns", "ascending")])
            yield made.take(order)

    def _made(self, records: Records) -> pa.Table:
        table = self.maker.table(records)
        self._counted[ALL] += len(table)
        return table
