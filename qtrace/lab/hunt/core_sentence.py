"""What `qtrace inspect --core` says of a core."""

from __future__ import annotations

from pathlib import Path

from qtrace.errors import QtraceError
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import Qemu
from qtrace.process.core_file import CoreFile
from qtrace.process.core_source import CoreSource
from qtrace.qemu.aio.findings import explain


def explain_core(core: Path, exe: Path, sysroot: Path) -> str:
    """Its first sentence.

    Args:
        exe: the executable as this process sees it.
        sysroot: the root that it ran in.
    """
    root = None if sysroot == Path("/") else sysroot
    try:
        findings = explain(Looker(Qemu(CoreSource(CoreFile(core), exe, root))).look())
    except QtraceError as error:
        return f"it cannot be read: {error.message}"
    return findings[0].sentence if findings else "nothing in it is in the way"
