"""One QEMU, with all that is learned of it: what others would have to wire by hand.

Outside gdb everything that works on a QEMU takes one of these: looks, recordings, experiments.
Each part is made when it is first asked for, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qtrace.binary.debug_layout import facts_of_debug_info
from qtrace.binary.likely_names import likely_names
from qtrace.errors import QtraceError
from qtrace.inspection.context_names import ContextNames
from qtrace.inspection.layout_cache import aio_layout
from qtrace.machine.architecture import Architecture
from qtrace.machine.parts import part
from qtrace.machine.thread_files import SystemCall, read_system_call
from qtrace.process.jit import read_jit_code
from qtrace.process.live_source import LiveSource
from qtrace.process.look_source import LookSource
from qtrace.process.process import Process, read_version
from qtrace.process.stack import Unwinder
from qtrace.qemu.aio.debug_facts import believed
from qtrace.qemu.aio.layout import Layout
from qtrace.roles import Roles
from qtrace.sites.scan import Scan
from qtrace.sites.scan_cache import scan_module


class Qemu:
    """A QEMU program: a live one, one that is held, or a core.

    Args:
        source: reads it.
        scan: of its binary, when it was made before there was a process.

    Attributes:
        roles: of its threads.
    """

    def __init__(self, source: LookSource, scan: Scan | None = None) -> None:
        self.source = source
        self.roles = Roles(source.pid)
        self.memory = source.memory
        self.space = source.space
        self.binary = source.binary
        self._scan = scan
        if scan is not None:
            # It was found by that; to hash the code anew would map all of it.
            self.binary.elf.code_hash = scan.code_hash

    @property
    def pid(self) -> int:
        return self.source.pid

    @property
    def architecture(self) -> Architecture:
        """The processor that it runs on."""
        return self.binary.elf.architecture

    @property
    def program(self) -> str:
        return self.source.program

    @property
    def bias(self) -> int:
        """Run-time minus link-time addresses of the executable."""
        return self.binary.bias

    @property
    def scan(self) -> Scan:
        """Raises NotQemu, ScanFailed."""
        if self._scan is None:
            self._scan = scan_module(self.binary)
        return self._scan

    @part
    def _believed(self) -> tuple[Layout, list[str]]:
        return believed(aio_layout(self.binary), facts_of_debug_info(self.binary))

    @property
    def layout(self) -> Layout:
        """As code and debug info show it; ``Layout.missing`` names what neither does."""
        return self._believed[0]

    @property
    def differing(self) -> list[str]:
        """The facts of ``layout`` on which code and debug info differ."""
        return self._believed[1]

    @part
    def contexts(self) -> ContextNames:
        """Raises NotQemu, ScanFailed."""
        return ContextNames(self.scan, self.binary, self.memory)

    @part
    def unwinder(self) -> Unwinder:
        """Of stacks that were copied: they are as they were, what is not mapped there is new."""
        self._name_static_functions()
        unwinder = Unwinder(self.space, self.architecture)
        # Not by way of self: a QEMU in a circle would keep its files open until it is collected.
        memory, binary = self.memory, self.binary
        unwinder.learn_jit(lambda: read_jit_code(memory, binary))
        return unwinder

    @part
    def look_unwinder(self) -> Unwinder:
        """Of stacks that are read where they lie. Mostly what leads nowhere is garbage, of a
        thread that ran on while it was read."""
        self._name_static_functions()
        unwinder = Unwinder(self.space, self.architecture, refreshing=False)
        jit = read_jit_code(self.memory, self.binary)
        unwinder.learn_jit(lambda: jit)
        return unwinder

    def shown(self, frame: str) -> str:
        """A frame, or a function, as people are shown it: without a name, its likely one besides,
        ``qemu-system-x86_64@0x98c19f (job_co_entry?)``.

        For what names decide the frame stays what it is: a likely name proves nothing.
        """
        binary, found, address = frame.rpartition("@0x")
        if not found or binary != self.binary.name:
            return frame
        vaddr = int(address, 16)
        likely = self._likely_names.get(vaddr)
        if likely is None:
            # A return address, which may be the next function's.
            function = self.binary.frames.function(vaddr - 1)
            likely = self._likely_names.get(function[0]) if function else None
        return f"{frame} ({likely}?)" if likely else frame

    @part
    def _likely_names(self) -> dict[int, str]:
        return likely_names(self.binary)

    def describe(self) -> dict[str, Any]:
        """The target, as every command's JSON names it."""
        elf = self.binary.elf
        return {
            "pid": self.pid,
            "program": self.program,
            "version": read_version(elf),
            "build_id": elf.build_id,
        }

    def _name_static_functions(self) -> None:
        """Before the first name is asked for: bottom halves and threads' functions are static."""
        try:
            self.binary.static_names = self.scan.static_names
        except QtraceError:
            # Its contexts may be read for all that.
            self.binary.static_names = {}


class LiveQemu(Qemu):
    """A running one.

    Attributes:
        process: what to attach to.
        read_system_call: what a thread is blocked in, see qtrace/machine/thread_files.py.
    """

    def __init__(self, process: Process, scan: Scan | None = None) -> None:
        super().__init__(LiveSource(process), scan)
        self.process = process
        self.read_system_call: Callable[[int], SystemCall | None] = partial(
            read_system_call, process.pid
        )
