"""A busy guest's main loop is in each look waiting for the BQL, and gets it in between: what it has
read tells, as the stack does not."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import Watch, shown_by
from qtrace.qemu.aio.model import Look, Thread
from tests.unit.test_aio_why import (
    IOHANDLER,
    MAIN,
    TAKING_BQL,
    VCPU_TID,
    main_thread,
    vcpu,
)

IN_A_CALLBACK = (
    *TAKING_BQL[:4], "qmp_marshal_stop+0x1", "do_qmp_dispatch_bh+0x2", "aio_bh_call+0x3",
    "aio_bh_poll+0x4", "aio_dispatch+0x5", *TAKING_BQL[4:],
)  # fmt: skip


class Scripted:
    """A looker before whom the main thread takes the BQL again and again, and gets it or not."""

    def __init__(self, reads: list[int | None], frames: tuple[str, ...]) -> None:
        self._reads = reads
        self._frames = frames
        self._looks = 0
        self.source = None

    def thread(self, tid: int, _name: str, _is_iothread: bool) -> Thread:
        if tid == VCPU_TID:
            return vcpu()
        self._looks += 1
        main = main_thread(self._frames, blocked_in="futex")
        return replace(main, cpu_ns=self._looks, turns=self._looks)

    def reads(self, _tid: int) -> int | None:
        return self._reads.pop(0)


@pytest.mark.parametrize(
    ("reads", "frames", "comes_round"),
    [
        ([7, 8], TAKING_BQL, True),
        ([7, 7], TAKING_BQL, False),
        ([None, None], TAKING_BQL, False),
        ([None, 8], TAKING_BQL, False),
        # A callback may read, and give the BQL away and take it back.
        ([7, 8], IN_A_CALLBACK, False),
    ],
)
def test_a_loop_that_reads_in_between_comes_round(
    reads: list[int | None], frames: tuple[str, ...], comes_round: bool
) -> None:
    main = main_thread(frames, blocked_in="futex")
    first = Look(0, (MAIN, IOHANDLER), threads=(main, vcpu()), bql_holder=VCPU_TID)
    watch = Watch(cast(Looker, Scripted(list(reads), frames)), first)
    try:
        watch.see()
        watch.see()
        assert watch.comes_round(main) == comes_round
        now = replace(first, time_ns=1, threads=(replace(main, cpu_ns=9, turns=9), vcpu()))
        reasons = shown_by(first, now, watch).reasons
        assert any("was not seen in its loop" in reason for reason in reasons) != comes_round
    finally:
        watch.close()
