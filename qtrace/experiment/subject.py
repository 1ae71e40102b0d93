"""The QEMU that an experiment is made on, and the bottom half that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qtrace.errors import ScanFailed
from qtrace.target.aio.calibration import calibrate
from qtrace.target.aio.layout import Layout
from qtrace.target.aio_code import ModuleProgram
from qtrace.target.contexts import ContextNames
from qtrace.target.hit import Hit
from qtrace.target.jit import read_jit_code
from qtrace.target.process import Process
from qtrace.target.scan import BottomHalf, Scan
from qtrace.target.scan_cache import scan_module
from qtrace.target.stack import CopiedStack, Unwinder
from qtrace.target.threads import ThreadRoles
from qtrace.target.watch import find_watchable

# What reading a context's list of bottom halves needs.
LISTS = ("ctx_bh_list", "ctx_bh_slice_list", "bh_next", "bh_flags", "bh_cb", "main_variable")


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread that did something: its role from all the evidence there is."""

    tid: int
    name: str
    role: str


class Subject:
    """A running QEMU and one of its bottom halves.

    Attributes:
        half: link-time addresses; ``bias`` makes run-time ones of them.
    """

    def __init__(self, pid: int, name: str) -> None:
        """Raises TargetError, PermissionMissing, NoMatch."""
        self.process = Process(pid)
        self.module = self.process.binary
        self.scan: Scan = scan_module(self.module)
        self.half: BottomHalf = find_watchable(self.scan, name)
        self.module.static_names = self.scan.static_names
        self.bias = self.module.bias
        self.contexts = ContextNames(self.scan, self.module, self.process.memory)

    @cached_property
    def layout(self) -> Layout:
        """Raises ScanFailed when the code does not show where bottom halves are listed."""
        layout = calibrate(ModuleProgram(self.module))
        missing = [fact for fact in LISTS if getattr(layout, fact) is None]
        if missing:
            raise ScanFailed(
                f"the code of {self.module.name} does not show {', '.join(missing)}",
                "try the QEMU of a distribution; qtrace inspect says what else is missing",
            )
        return layout

    @cached_property
    def _unwinder(self) -> Unwinder:
        unwinder = Unwinder(self.process.space)
        unwinder.learn_jit(lambda: read_jit_code(self.process.memory, self.module))
        return unwinder

    @cached_property
    def _roles(self) -> ThreadRoles:
        return ThreadRoles(self.process)

    def frames(self, hit: Hit) -> list[str]:
        """The functions on the stack, leaf first."""
        memory = CopiedStack(hit.stack_base, hit.stack)
        return self._unwinder.names(self._unwinder.unwind(hit.registers, memory.word))

    def thread(self, tid: int, name: str, frames: list[str] | None = None) -> Thread:
        return Thread(tid, name, self._roles.role(tid, name, frames or ()))

    def describe(self) -> dict[str, Any]:
        """The target, as every command's JSON names it."""
        return {
            "pid": self.process.pid,
            "program": self.process.program,
            "version": self.scan.version,
            "build_id": self.scan.build_id,
        }
