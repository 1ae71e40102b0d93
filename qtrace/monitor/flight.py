"""The last events of one QEMU as a recording, which every command reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qtrace.errors import QtraceError
from qtrace.inspection.qemu import LiveQemu
from qtrace.monitor.host_probes import Armed
from qtrace.process.hit import Hit
from qtrace.record.header import attach_row, detach_row
from qtrace.record.qmp_rows import Commands
from qtrace.record.rows import RowMaker
from qtrace.trace.schema import Event
from qtrace.trace.writer import CsvWriter

REASON = "the last events that were kept"


class Flight:
    """What is written of them.

    Args:
        hits: in the order of time.
        since_ns: these were all from then on; 0: it is not known, and nothing is claimed.
        lost: hits, of any QEMU, that nobody has seen since this one was armed.
        known: what was read for its commands while it was there.
        status: how it has ended, as ``Watcher.status``; None while it is there.
    """

    def __init__(
        self,
        qemu: LiveQemu,
        armed: Armed,
        hits: Sequence[Hit],
        since_ns: int,
        lost: int,
        known: Commands | None,
        status: dict[str, int] | None,
    ) -> None:
        self._status = status
        self._qemu = qemu
        self._armed = armed
        self._commands = known
        self._hits = hits
        self._since_ns = since_ns or time.monotonic_ns()
        self._lost = lost

    def write(self, path: Path, failed: Callable[[str], None]) -> None:
        """Write them; ``failed`` is told what stands in the way, and its remedy, on two lines."""
        try:
            writer = CsvWriter(path)
            try:
                writer.write(self._rows())
                writer.flush()
            finally:
                writer.close()
        except QtraceError as error:
            failed(f"{error.message}\nremedy: {error.remedy}")

    def _rows(self) -> list[Event]:
        qemu, plans = self._qemu, self._armed.plans
        commands = Commands(qemu.binary, qemu.memory)
        commands.begin(self._commands)
        maker = RowMaker(self._armed.sites, qemu, commands)
        rows = [attach_row(self._since_ns, "ebpf", qemu, plans, None, 0)]
        for hit in self._hits:
            if hit.address in self._armed.sites and hit.time_ns >= self._since_ns:
                # Each command is worth its rows here, however short it was.
                rows += [*maker.rows(hit), *commands.show()]
        until_ns = time.monotonic_ns()
        if self._status is not None:
            rows.append(Event(until_ns, "exit", detail=self._status))
        rows.append(
            detach_row(REASON, until_ns, plans.watch, maker.hits, self._lost, commands, None, {})
        )
        return rows
