"""Looks at a steady pace: what is dear to find out is asked of what they prove alone."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import APART_NS, proven_again
from qtrace.qemu.aio.findings import explain
from qtrace.qemu.aio.model import Look, Thread
from tests.unit.test_aio_why import IOHANDLER, MAIN, TAKING_BQL, VCPU_TID, main_thread, vcpu

BEFORE = Look(
    0, (MAIN, IOHANDLER), threads=(main_thread(TAKING_BQL, blocked_in="futex"), vcpu()),
    bql_holder=VCPU_TID,
)  # fmt: skip


class Asked:
    """A looker that notes whether it was asked for anything."""

    def __init__(self) -> None:
        self.times = 0

    @property
    def source(self) -> object:
        self.times += 1
        return None


def later(*threads: Thread) -> Look:
    return replace(BEFORE, time_ns=APART_NS, threads=threads)


def proven(now: Look) -> tuple[list[str], int]:
    looker = Asked()
    findings, _reasons = proven_again(cast(Looker, looker), [BEFORE], now)
    return [one.kind for one in findings], looker.times


def test_of_who_has_moved_on_it_is_not_asked_what_it_waits_for_outside() -> None:
    main, holder = BEFORE.threads
    now = later(replace(main, cpu_ns=9), replace(holder, cpu_ns=9))
    assert explain(now)
    assert proven(now) == ([], 0)


def test_of_what_is_proven_it_is() -> None:
    assert proven(later(*BEFORE.threads)) == (["stuck"], 1)
