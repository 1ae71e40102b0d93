"""How our gdb is set up: nothing read that is not needed, and QEMU's signals left to QEMU."""

from __future__ import annotations

import signal
import struct

# Stops the target for gdb and means nothing to QEMU, should gdb be gone before it is taken:
# gdb's own `interrupt` sends a SIGINT, which would then shut the guest down.
STOP_SIGNAL = signal.SIGURG

# Without symbols and shared libraries gdb attaches in 10 ms instead of 500. Nor does it set a
# breakpoint of its own in the dynamic linker, or step through a scratch place in the target's
# code, which is what `osabi none` is for. All addresses are ours.
SETTINGS = (
    "set debuginfod enabled off",
    "set auto-load off",
    "set auto-solib-add off",
    "set exec-file-mismatch off",
    "set osabi none",
    "set pagination off",
    "set confirm off",
    "set history save off",
    "set mi-async on",
    # Of several threads the last one to die frees gdb's memory: see qtrace.gdb.safety.lifeline.
    "maintenance set worker-threads 0",
)
# QEMU's signals are QEMU's: KVM kicks its vCPUs by SIGUSR1, and gdb would stop at each.
HANDLE = (
    "handle all nostop noprint pass",
    "handle SIGINT nostop noprint pass",
    f"handle {STOP_SIGNAL.name} stop print nopass",
    "handle SIGSTOP stop print pass",
)


def empty_executable() -> bytes:
    """An x86-64 ELF file with nothing in it: gdb reads an executable's symbols if it has none."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 2, 62, 1, 0, 64, 0, 0, 64, 56, 1,
        0, 0, 0,
    )  # fmt: skip
    return header + struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, 120, 120, 4096)
