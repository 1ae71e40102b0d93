"""Whether a running process has the code that its file has: compared before a probe is set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qtrace.binary.module import Module
from qtrace.errors import CodeMismatch, TargetError
from qtrace.machine.memory import Memory
from qtrace.process.process import Process

# The longest instruction has 15 bytes.
COMPARED = 16


def runs_as_in_file(module: Module, memory: Memory, vaddr: int) -> bool:
    """Compare the bytes at a link-time address."""
    in_file = module.elf.read(vaddr, COMPARED)
    running = memory.read(vaddr + module.bias, len(in_file))
    # Another tracer's uprobe shows as a breakpoint instruction at the beginning.
    return running == in_file or any(
        running == there + in_file[len(there) :] for there in module.elf.architecture.breakpoints
    )


def with_breakpoint(module: Module, memory: Memory, vaddrs: Iterable[int]) -> set[int]:
    """At which of these link-time addresses a probe, or a debugger's breakpoint, is now."""
    breakpoints = module.elf.architecture.breakpoints
    size = max(map(len, breakpoints))
    return {a for a in vaddrs if memory.read(a + module.bias, size) in breakpoints}


def without_probe(module: Module, memory: Memory, vaddrs: Iterable[int]) -> list[int]:
    """At which of these link-time addresses no probe is, while one should be at each; empty where
    the process has ended."""
    all_of_them = sorted(set(vaddrs))
    if not all(memory.read(a + module.bias, 1) for a in all_of_them):
        return []
    there = with_breakpoint(module, memory, all_of_them)
    return [a for a in all_of_them if a not in there]


def check_in_place(module: Module, memory: Memory, labels: Mapping[int, str]) -> None:
    """Whether what the kernel has taken is in the code that the process runs: else nothing would
    come, and nothing would be lost.

    Args:
        labels: by link-time address.

    Raises CodeMismatch.
    """
    if missing := without_probe(module, memory, labels):
        raise CodeMismatch(
            f"the kernel has taken a probe at {module.name}@{missing[0]:#x} ({labels[missing[0]]}),"
            " but it is not in the code that the process runs",
            "nothing can be recorded of it this way; qtrace doctor says whether a probe of its own "
            "is hit",
        )


def refuse_breakpoints(process: Process, vaddrs: Iterable[int]) -> None:
    """Raises TargetError where a debugger has set breakpoints at sites to be probed.

    The kernel would take such a breakpoint for the probe, so that the debugger never learns of a
    hit, and either end would take it away from the other.
    """
    module = process.binary
    tracer = process.describe_tracer()
    taken = sorted(with_breakpoint(module, process.memory, vaddrs)) if tracer else []
    if taken:
        raise TargetError(
            f"{tracer} traces process {process.pid} and has a breakpoint where a probe would be, "
            f"at {module.name}@{taken[0]:#x}",
            "end that one first",
        )


def code_mismatch(module: Module, vaddr: int, label: str, says: str = "file says") -> CodeMismatch:
    """The error that a site is not what the file, or the scan, has there."""
    return CodeMismatch(
        f"the code at {module.name}@{vaddr:#x} ({label}) is not what the {says}",
        "no probe was set; attach to a QEMU that nothing has patched",
    )
