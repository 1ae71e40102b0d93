"""The stack of a coroutine that sleeps, unwound by gdb itself.

An unwinder presents the registers that the coroutine left by to gdb as the caller of the
selected thread's innermost frame, so that neither registers nor memory are touched. (``frame
view SP PC`` will not do: ``up`` walks the thread's real stack after it.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gdb
from gdb.unwinder import Unwinder, register_unwinder

from qtrace.gdbscripts.gdb_target import register

# Keeps the presented frame's identity apart from that of a real frame of the coroutine, which
# would make gdb stop ("previous frame inner to this frame").
_BELOW = 16


class _FrameId:
    def __init__(self, sp: int, pc: int) -> None:
        self.sp = gdb.Value(sp)
        self.pc = gdb.Value(pc)


class _Presenter(Unwinder):
    """Says, once per look, that the coroutine called the innermost frame."""

    def __init__(self) -> None:
        super().__init__("aio-coroutine")
        self.enabled = False
        self._registers: dict[str, int] = {}
        self._newest_sp: int | None = None

    def present(self, registers: dict[str, int], newest_sp: int | None) -> None:
        self._registers = dict(registers)
        self._newest_sp = newest_sp
        self.enabled = bool(registers)

    def __call__(self, pending: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        # By the stack pointer, not the level: frames of inlined functions come before it.
        if not self._registers or _unsigned(pending.read_register("rsp")) != self._newest_sp:
            return None
        registers, self._registers = self._registers, {}
        info = pending.create_unwind_info(_FrameId(registers["rsp"] - _BELOW, registers["rip"]))
        word = gdb.lookup_type("unsigned long")
        for name, value in registers.items():
            info.add_saved_register(name, gdb.Value(value).cast(word))
        return info


_presenter = _Presenter()
register_unwinder(None, _presenter, replace=True)


@contextmanager
def presented(registers: dict[str, int]) -> Iterator[gdb.Frame | None]:
    """The innermost frame of a coroutine with these saved registers; valid in the context only."""
    newest = gdb.newest_frame()
    stack_pointer = register(newest, "rsp")
    _presenter.present(registers, stack_pointer)
    gdb.invalidate_cached_frames()
    try:
        frame: gdb.Frame | None = gdb.newest_frame()
        # The thread's own innermost frame, and functions that are inlined in it.
        while frame is not None and register(frame, "rsp") == stack_pointer:
            frame = frame.older()
        yield frame
    finally:
        _presenter.present({}, None)
        gdb.invalidate_cached_frames()


def _unsigned(value: gdb.Value) -> int:
    return int(value) & (1 << 64) - 1
