"""The names of AioContexts, found without symbols or debug info."""

from __future__ import annotations

import time
from collections.abc import Callable

from qtrace.binary.module import Module
from qtrace.machine.memory import Memory, read_word
from qtrace.sites.scan import Scan

LOOK_S = 0.0005


class ContextNames:
    """``main``, ``iohandler`` and ``iothread:<id>`` by AioContext pointer.

    The first two lie in static variables (their addresses come from the scan); QEMU makes
    ``iohandler`` when it is first asked for, so the variables are read again on a miss.
    """

    def __init__(self, scan: Scan, module: Module, memory: Memory) -> None:
        self._variables = {
            name: address + module.bias for name, address in scan.context_variables.items()
        }
        self._memory = memory
        self._names: dict[int, str] = {}
        self._read()

    def name(self, ctx: int) -> str:
        """The context's name, empty when it is not known."""
        if not ctx:
            return ""
        if ctx not in self._names:
            self._read()
        return self._names.get(ctx, "")

    def wait(self, timeout_s: float, ended: Callable[[], bool]) -> None:
        """Look until a program that has just been started has made its main context, or ended."""
        deadline = time.monotonic() + timeout_s
        while "main" in self._variables and "main" not in self._names.values():
            if time.monotonic() >= deadline or ended():
                return
            time.sleep(LOOK_S)
            self._read()

    def find(self, name: str) -> int:
        """The context of that name, 0 when there is none (yet)."""
        self._read()
        return next((ctx for ctx, known in self._names.items() if known == name), 0)

    def learn(self, ctx: int, name: str) -> None:
        """Take the name of a context that was seen in its own thread's loop."""
        if ctx:
            self._names.setdefault(ctx, name)

    def _read(self) -> None:
        for name, address in self._variables.items():
            ctx = read_word(self._memory, address)
            if ctx:
                self._names[ctx] = name
