"""Each piece of what is known of QEMU, Linux and x86-64 stands in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("qtrace", "gdbscripts", "analysis", "probes")
SUFFIXES = (".py", ".c", ".h")

CALIBRATION = "qtrace/qemu/aio/calibration.py"
# The fact, how it looks when it is written down, and the one file that does.
FACTS = {
    "QEMUBH's flags": (r"\bPENDING\b[^\n]*= *1\b", "qtrace/knowledge.py"),
    "programs without a main loop": (r'"qemu-img", "qemu-nbd"', "qtrace/knowledge.py"),
    "the snapshot jobs": (r'"snapshot_delete_job_bh"[,:]', "qtrace/knowledge.py"),
    "when QEMUBH got its name": (r"0f08586c71", "qtrace/qemu/aio/layout.py"),
    "how QEMUBH begins": (r"words\[2:4\]", "qtrace/qemu/aio/layout.py"),
    "where QEMUBH's flags lie": (r'"bh_flags", place', CALIBRATION),
    "what calls a bottom half": (r"bh->cb\(bh->opaque\)", CALIBRATION),
    "which kinds of threads there are": (r"kvm_vcpu_thread_fn", "qtrace/roles.py"),
    "KVM_RUN": (r"(?i)0xae80", "qtrace/machine/syscalls.py"),
    "what a call keeps": (r'"rbx", "rbp", "r12"', "qtrace/machine/arch_x86_64.py"),
    "what a call loses": (r'"rdi", "r8", "r9", "r10"', "qtrace/machine/arch_x86_64.py"),
    "/proc/PID/task/TID/syscall": (
        r"in \(3, 9\)|fields\) [!=]= 9",
        "qtrace/machine/thread_files.py",
    ),
    "the fields of /proc/PID/stat": (
        r"rpartition\(b?[\"']\)",
        "qtrace/machine/stat_file.py",
    ),
    "where the code's bytes lie in a file": (r"\.offset \+ s\.filesz", "qtrace/binary/elf.py"),
    "who may call a function": (r"\.references_to\(", "qtrace/binary/dataflow.py"),
    "what a function calls": (
        r"is_call\(\w+\)\n?[^\n]*\n?[^\n]*target\(",
        "qtrace/binary/dataflow.py",
    ),
    "who is believed": (r"(?i)debug info is\s+believed", "qtrace/qemu/aio/debug_facts.py"),
}


def sources() -> list[Path]:
    """Every file of the product; a link leads to a folder that is listed itself."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES and not any(p.is_symlink() for p in path.parents)
    ]


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_is_written_down_once(fact: str) -> None:
    pattern, place = FACTS[fact]
    found = [
        str(path.relative_to(ROOT))
        for path in sources()
        if re.search(pattern, path.read_text(encoding="utf-8"))
    ]
    assert found == [place]


def test_no_version_is_told_of_the_name_but_the_one_that_has_it() -> None:
    text = (ROOT / "qtrace/qemu/aio/layout.py").read_text(encoding="utf-8")
    assert "0f08586c71 (6.1)" in text
    assert [str(p) for p in sources() if re.search(r"\b6\.2\b", p.read_text())] == []
