"""probes/all.bpf.c for one binary, and the layout of what it sends."""

from __future__ import annotations

import re

import numpy as np

from qtrace.record.ebpf.bpf_image import PROBES
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.record_ring import PAGE
from qtrace.record.ebpf.rings import possible_cpus
from qtrace.sites.all_plan import AllPlan

# All CPUs' buffers together: a third of a second of events at the highest rate seen.
RING_BYTES = 32 << 20
MIN_RING_BYTES = 1 << 20
# Some hundred whole stacks may wait between two looks (--stacks-every), where almost each event has
# one a thousand: on a busy host looks are far between.
STACK_RING_PAGES, MOST_STACK_RING_PAGES, ALMOST_EACH = 1024, 8192, 8
FIELD = re.compile(r"^\s*(u64|u32) (\w+)(?:\[(\d+)\])?;", re.MULTILINE)


def ring_pages(cpus: int, total: int = RING_BYTES) -> int:
    """Pages of each CPU's buffer: a power of two."""
    each = max(total // cpus, MIN_RING_BYTES) // PAGE
    return 1 << (each.bit_length() - 1)


def load_all(
    plan: AllPlan, pages: int | None = None, stacks_every: int = 0, *, compiled: bool = False
) -> Program:
    """The program for these sites.

    Args:
        pages: of each CPU's ring buffer, a power of two.
        stacks_every: the whole stack of every Nth event of a probe; 0 for none.
        compiled: by the bcc of this host, not as it comes with qtrace.

    Raises RecorderUnavailable.
    """
    cpus = possible_cpus()
    functions = {
        name: (function, {**filling, "STACKS_EVERY": stacks_every, "TURN": turn})
        for turn, (name, (function, filling)) in enumerate(plan.programs.items())
    }
    sizes = {"ring": (pages or ring_pages(cpus)) * PAGE, "rings": cpus}
    if stacks_every:
        each = stacks_every <= ALMOST_EACH
        sizes["events"] = (MOST_STACK_RING_PAGES if each else STACK_RING_PAGES) * PAGE
    return Program("all.bpf.c", functions, sizes, compiled=compiled)


def slot_type() -> np.dtype[np.void]:
    """A record with the ring buffer's header before it, as probes/all.h defines it."""
    text = (PROBES / "all.h").read_text()
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [("length", "<u4"), ("", "<u4")]
    for kind, name, count in FIELD.findall(text):
        code = {"u64": "<u8", "u32": "<u4"}[kind]
        fields.append((name, code, (int(count),)) if count else (name, code))
    return np.dtype(fields)
