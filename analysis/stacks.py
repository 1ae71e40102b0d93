"""What a stack proves: who dispatched the callback, and on what kind of thread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qtrace.roles import VCPU
from qtrace.trace.schema import COROUTINE, PARTIAL, TRUNCATED, UNREADABLE

# aio_poll() runs bottom halves of its context itself; everything else goes through a GSource:
# g_main_context_dispatch() -> aio_ctx_dispatch() -> aio_dispatch() -> aio_bh_poll().
POLL = "aio_poll"
RUNNER = "aio_bh_poll"
LOOPS = frozenset({"aio_dispatch", "aio_ctx_dispatch", "g_main_context_dispatch"})

# The guest reached a device: MMIO, port I/O or DMA on its behalf.
DEVICE = re.compile(
    r"memory_region_(dispatch_)?(read|write)|address_space_|flatview_|"
    r"cpu_(in|out)[bwl]$|ide_|ahci_|pflash_|virtio_|scsi_|nvme_|fdctrl_"
)
ENDS = frozenset({TRUNCATED, UNREADABLE, COROUTINE, PARTIAL})

OFFSET = re.compile(r"\+0x[0-9a-f]+$")
# Parts that the compiler split off a function bear its name with a suffix.
CLONE = re.compile(r"\.(cold|part|isra|constprop|lto_priv)\b.*$")


PROBLEMS = (
    "its stack could not be read", "its stack ends before the poll or dispatch that ran it",
    "who called it has no name, so that a nested poll would not show",
)  # fmt: skip
# A frame of a program that exports nothing.
NAMELESS = "@0x"


@dataclass(frozen=True)
class StackFacts:
    """One stack, judged. Indexes count frames from the leaf; -1 where there is none.

    Attributes:
        depth: how many frames it has.
        dispatcher: "poll", "loop", or "" when the stack does not show it.
        deciding_frame: the innermost dispatcher's frame.
        device_frame: the innermost frame towards the root, seen from there, that shows a
            guest's access to a device.
        in_poll: ``aio_poll`` is anywhere on the stack.
        vcpu: a frame that only a vCPU thread has.
        problem: why there is no dispatcher, in words.
    """

    depth: int
    dispatcher: str
    deciding_frame: int
    device_frame: int
    in_poll: bool
    vcpu: bool
    problem: str


def functions(stack: str) -> list[str]:
    """A folded stack (``root;...;leaf``) to its functions, leaf first, offsets stripped."""
    return [OFFSET.sub("", frame) for frame in reversed(stack.split(";"))] if stack else []


def frames_of(one: Mapping[Any, Any]) -> tuple[list[str], int, int]:
    """Of a row of ``instances`` the functions of its stack, leaf first, and where in these its
    ``deciding_frame`` and its ``device_frame`` are; -1 for none."""
    chain = functions(one["stack"])
    places = (one.get("deciding_frame"), one.get("device_frame"))
    deciding, device = (-1 if pd.isna(at) else len(chain) - 1 - int(at) for at in places)
    return chain, deciding, device


def poll_caller(chain: list[str], poll: int) -> str:
    """Who called aio_poll(): the frame behind index ``poll``; empty when that is not known."""
    return chain[poll + 1] if 0 <= poll < len(chain) - 1 else ""


def judge_stack(stack: str) -> StackFacts:
    """Read one folded stack; its leaf is the callback itself."""
    names = [CLONE.sub("", name) for name in functions(stack)]
    callers = range(1, len(names))
    deciding = next((i for i in callers if _decides(names, i)), -1)
    problem = ""
    if not names or names[0] in ENDS:
        problem = PROBLEMS[0]
    elif deciding < 0 or names[deciding] in ENDS:
        problem = PROBLEMS[1]
    elif NAMELESS in names[1] and RUNNER not in names[: deciding + 1]:
        problem = PROBLEMS[2]
    if problem:
        deciding = -1
    device = -1
    if deciding >= 0:
        device = next((i for i in range(deciding, len(names)) if DEVICE.match(names[i])), -1)
    dispatcher = "" if problem else "loop" if names[deciding] in LOOPS else "poll"
    return StackFacts(
        depth=len(names),
        dispatcher=dispatcher,
        deciding_frame=deciding,
        device_frame=device,
        in_poll=POLL in names or dispatcher == "poll",
        vcpu=not VCPU.isdisjoint(names),
        problem=problem,
    )


def _decides(names: list[str], index: int) -> bool:
    """Whether a frame shows who dispatched, or that the stack does not tell.

    Besides aio_poll() and the loop, bdrv_graph_wrunlock() calls aio_bh_poll() itself (10.0): a
    nested event loop too. It is a tail call, so that its caller shows instead.
    """
    name = names[index]
    if name == POLL or name in LOOPS or name in ENDS:
        return True
    if name != RUNNER or index + 1 == len(names):
        return False
    # The one after the next: aio_dispatch() may be inlined into its static caller.
    beyond = names[index + 1 : index + 3]
    return beyond[0] not in ENDS and not any(name == POLL or name in LOOPS for name in beyond)


def judge_wait(stack: str) -> int:
    """The innermost aio_poll() of a thread that waits, counted from the leaf; else 0, the leaf."""
    names = functions(stack)
    return names.index(POLL) if POLL in names else 0


def stack_facts(stacks: pd.Series) -> pd.DataFrame:
    """The facts for each row of a categorical column of stacks; each stack is read once."""
    return facts_by_code(stacks).take(stacks.array.codes).set_axis(stacks.index)


def facts_by_code(stacks: pd.Series) -> pd.DataFrame:
    """The facts for each category of a column of stacks that occurs, the last row for none.

    A row's facts are at its code: ``facts.take(stacks.array.codes)``.
    """
    used = np.zeros(len(stacks.cat.categories) + 1, np.bool_)
    used[stacks.array.codes] = True
    texts = [*stacks.cat.categories, ""]
    judged = [judge_stack(text if there else "") for text, there in zip(texts, used, strict=True)]
    return pd.DataFrame(judged, columns=list(StackFacts.__dataclass_fields__))
