"""Whether a running process has the code that its file has: compared before a probe is set."""

from __future__ import annotations

from qtrace.errors import CodeMismatch
from qtrace.target.arch_x86_64 import BREAKPOINT
from qtrace.target.maps import Module
from qtrace.target.memory import Memory

# The longest instruction has 15 bytes.
COMPARED = 16


def runs_as_in_file(module: Module, memory: Memory, vaddr: int) -> bool:
    """Compare the bytes at a link-time address."""
    in_file = module.elf.read(vaddr, COMPARED)
    running = memory.read(vaddr + module.bias, len(in_file))
    # Another tracer's uprobe shows as a breakpoint instruction in the first byte.
    return running[1:] == in_file[1:] and running[:1] in (in_file[:1], bytes([BREAKPOINT]))


def code_mismatch(module: Module, vaddr: int, label: str, says: str = "file says") -> CodeMismatch:
    """The error that a site is not what the file, or the scan, has there."""
    return CodeMismatch(
        f"the code at {module.name}@{vaddr:#x} ({label}) is not what the {says}",
        "no probe was set; attach to a QEMU that nothing has patched",
    )
