"""What a scan tells of a QEMU binary (qtrace/sites/scanner.py makes it): plain data.

Whoever finds one in the cache needs no disassembler.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

QmpStep = Literal["command", "begin", "end", "reply", "STOP", "RESUME", "status"]


@dataclass(frozen=True, slots=True)
class CallSite:
    """One place that schedules: its link-time address, the context where the code shows it.

    ``context`` is ``main``, ``iohandler``, a function whose result is used (``f()``), or
    empty; ``code`` are the instruction's bytes in hex. It calls (or jumps to) ``callee``:
    aio_bh_schedule_oneshot_full(ctx, cb, opaque), or with ``fields`` aio_bh_enqueue(bh), ctx, cb
    and opaque lying at these offsets into what ``bh`` points to.
    """

    address: int
    code: str
    context: str
    callee: int
    fields: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BottomHalf:
    """A one-shot bottom half: link-time address of its callback, and who schedules it.

    ``callback`` is 0 where the code passes a variable (then ``name`` is an expression).
    ``exits`` are the instructions at which it returns, empty where not all are known.
    """

    name: str
    callback: int
    code: str
    sites: tuple[CallSite, ...]
    exits: tuple[int, ...]

    @property
    def watchable(self) -> bool:
        return self.callback != 0


@dataclass(frozen=True, slots=True)
class QmpSite:
    """One place: its link-time address, and the function that it calls (0: it is an entry,
    or with ``end`` an exit). ``argument``: of ``command``, which one its name is, from 0 on."""

    step: QmpStep
    address: int
    callee: int = 0
    argument: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What the code of one binary tells.

    Attributes:
        scheduler: link-time address of aio_bh_schedule_oneshot_full().
        found_by: ``symbol``, or ``names`` where the binary has no symbol for it.
        context_variables: link-time addresses of the static pointers to the main loop's
            contexts, by context name.
        qmp: where it takes, carries out and answers QMP commands, and tells of jobs.
        threads: link-time addresses of functions that threads begin with, by their names.
    """

    build_id: str
    code_hash: str
    version: str
    scheduler: int
    found_by: str
    bottom_halves: tuple[BottomHalf, ...]
    context_variables: dict[str, int]
    qmp: tuple[QmpSite, ...]
    threads: dict[str, int]

    @property
    def static_names(self) -> dict[int, str]:
        """The functions that it names although they have no symbol, by link-time address."""
        named = [half for half in self.bottom_halves if half.callback and half.name.isidentifier()]
        halves = {half.callback: half.name for half in named}
        return halves | {address: name for name, address in self.threads.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scan:
        """Raises KeyError or TypeError when the data is not a scan of this version."""
        halves = tuple(
            BottomHalf(
                **{
                    **half,
                    "sites": tuple(
                        CallSite(**{**site, "fields": tuple(site["fields"])})
                        for site in half["sites"]
                    ),
                    "exits": tuple(half["exits"]),
                }
            )
            for half in data["bottom_halves"]
        )
        qmp = tuple(QmpSite(**site) for site in data["qmp"])
        return cls(**{**data, "bottom_halves": halves, "qmp": qmp})
