"""An independent count: the kernel's own uprobe counters, of a QEMU program that is nobody else's.

perf_event_open(2) counts without BPF and without a line of qtrace's recorder; where to count is
read from objdump's disassembly, not from qtrace's.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PERF_EVENT_OPEN = 298
UPROBE_PMU = Path("/sys/bus/event_source/devices/uprobe/type")
# struct perf_event_attr up to `aux_watermark`: type, size, config, period, sample_type,
# read_format, flags, wakeup, bp_type, uprobe_path, probe_offset.
ATTRIBUTES = struct.Struct("<IIQQQQQIIQQ40x")
# An instruction of objdump: its address, its text.
LINE = re.compile(r"^ *([0-9a-f]+):\t(.+?) *$", re.MULTILINE)
ENTRIES = (
    "aio_bh_call", "qemu_bh_schedule", "qemu_bh_schedule_idle", "aio_bh_schedule_oneshot_full",
    "qemu_bh_delete", "aio_co_schedule", "aio_co_reschedule_self",
)  # fmt: skip


def own_copy(program: Path, folder: Path) -> Path:
    """The program below another prefix: a uprobe counts in every process of a file."""
    prefix = program.parent.parent
    (folder / "usr/bin").mkdir(parents=True, exist_ok=True)
    for name in ("lib", "share"):
        if not (folder / "usr" / name).exists():
            (folder / "usr" / name).symlink_to(prefix / name)
    copy = folder / "usr/bin" / program.name
    shutil.copy(program, copy)
    return copy


@contextmanager
def counting(program: Path) -> Iterator[Counter[str]]:
    """Count what passes the event loop's functions; the counter is filled when it ends.

    Beside the entries: ``dequeue``, a bottom half taken off its list (each insertion comes to
    one), and ``cancel``, behind the locked instruction of qemu_bh_cancel().
    """
    with counting_offsets(program, _places(program)) as counts:
        yield counts


@contextmanager
def counting_inlined(program: Path) -> Iterator[Counter[str]]:
    """Likewise where the compiler has inlined: by the atomic instructions themselves, wherever
    objdump's listing of the whole program has them.

    ``enqueue`` behind each OR of a bottom half's flags, ``cancel`` behind each AND of them,
    ``dequeue``, and the entries of aio_bh_call() and aio_co_schedule().
    """
    listing = [(int(at, 16), " ".join(text.split())) for at, text in LINE.findall(
        _run("objdump", "-d", "--no-show-raw-insn", "-j", ".text", program))]  # fmt: skip
    flags, run = _flags_and_run(program)
    places = [
        ("aio_bh_call", run),
        ("aio_co_schedule", _disassembled(program, "aio_co_schedule")[0][0]),
    ]
    for number, (_at, text) in enumerate(listing):
        if re.match(rf"lock andl \$0xfffffffd,{flags}\(", text):
            places.append(("cancel", listing[number + 1][0]))
        elif re.match(rf"lock cmpxchg %\w+,{flags}\(", text):
            if not listing[number - 1][1].startswith("or "):
                continue
            assert listing[number + 1][1].startswith("jne")
            places.append(("enqueue", listing[number + 2][0]))
    places.append(("dequeue", _dequeued(program)))
    shift = _load_shift(program)
    with counting_offsets(program, [(name, address - shift) for name, address in places]) as counts:
        yield counts


@contextmanager
def counting_calls(program: Path, function: str) -> Iterator[Counter[str]]:
    """Count how often an exported function is entered, likewise."""
    with counting_offsets(program, ((function, offset_of(program, function)),)) as counts:
        yield counts


def offset_of(program: Path, function: str) -> int:
    """The file offset of an exported function."""
    ((entry, _text), *_rest) = _disassembled(program, function)
    return entry - _load_shift(program)


@contextmanager
def counting_offsets(program: Path, places: Iterable[tuple[str, int]]) -> Iterator[Counter[str]]:
    """``places``: name and file offset of each."""
    counts: Counter[str] = Counter()
    path = ctypes.create_string_buffer(os.fsencode(program))
    fds: list[tuple[str, int]] = []
    try:
        for name, offset in places:
            for cpu in os.sched_getaffinity(0):
                fds.append((name, _open(path, offset, cpu)))
        yield counts
        for name, fd in fds:
            counts[name] += int.from_bytes(os.read(fd, 8), "little")
    finally:
        for _name, fd in fds:
            os.close(fd)


@contextmanager
def probed_with_counter(program: Path, function: str) -> Iterator[None]:
    """A uprobe on an exported function that has a reference counter, as a tracer of USDT makes it,
    where no other can be then."""
    path = ctypes.create_string_buffer(os.fsencode(program))
    # Behind the end of the file: it is never counted.
    fd = _open(path, offset_of(program, function), 0, reference=1 << 30)
    try:
        yield
    finally:
        os.close(fd)


def _open(path: ctypes.Array[ctypes.c_char], offset: int, cpu: int, reference: int = 0) -> int:
    """``reference``: the file offset of the probe's reference counter."""
    pmu = int(UPROBE_PMU.read_text())
    attributes = ATTRIBUTES.pack(
        pmu, ATTRIBUTES.size, reference << 32, 0, 0, 0, 0, 0, 0, ctypes.addressof(path), offset
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(PERF_EVENT_OPEN, attributes, -1, cpu, -1, 0))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open of a uprobe")
    return fd


@cache
def _places(program: Path) -> tuple[tuple[str, int], ...]:
    """Name and file offset of each place."""
    places = []
    for name in ENTRIES:
        code = _disassembled(program, name)
        if code:
            places.append((name, code[0][0]))
    places.append(("dequeue", _dequeued(program)))
    cancel = _disassembled(program, "qemu_bh_cancel")
    assert cancel[0][1].startswith("lock and")
    places.append(("cancel", cancel[1][0]))
    shift = _load_shift(program)
    return tuple((name, address - shift) for name, address in places)


def _flags_and_run(program: Path) -> tuple[str, int]:
    """Where QEMUBH has its flags, and where a bottom half is run: aio_bh_call(), or 5.2's call of
    the callback in aio_bh_poll() itself."""
    poll = _disassembled(program, "aio_bh_poll")
    (flags,) = [m[1] for _at, t in poll if (m := re.match(r"lock cmpxchg %\w+,(0x\w+)\(", t))]
    if any("<aio_bh_call" in text for _at, text in poll):
        return flags, _disassembled(program, "aio_bh_call")[0][0]
    (run,) = [at for at, text in poll if text.startswith("call *0x8(")]
    return flags, run


def _dequeued(program: Path) -> int:
    """The instruction behind the fetch-and-and of aio_bh_dequeue() and its retry."""
    poll = _disassembled(program, "aio_bh_poll")
    (retry,) = [n for n, (_at, text) in enumerate(poll) if text.startswith("lock cmpxchg")]
    assert poll[retry + 1][1].startswith("jne")
    return poll[retry + 2][0]


def _load_shift(program: Path) -> int:
    (shift,) = {_shift(line) for line in _run("readelf", "-lW", program).splitlines()
                if " R E " in line}  # fmt: skip
    return shift


def _shift(line: str) -> int:
    """Address less file offset of a segment that is executed."""
    _type, offset, address = line.split()[:3]
    return int(address, 16) - int(offset, 16)


def _disassembled(program: Path, function: str) -> list[tuple[int, str]]:
    symbols = _run("nm", "-D", "-S", "--defined-only", program)
    found = re.search(rf"^(\w+) (\w+) T {function}(@|$)", symbols, re.MULTILINE)
    if found is None:
        return []
    start, size = int(found[1], 16), int(found[2], 16)
    shown = _run("objdump", "-d", "--no-show-raw-insn", f"--start-address={start}",
                 f"--stop-address={start + size}", program)  # fmt: skip
    return [(int(address, 16), " ".join(text.split())) for address, text in LINE.findall(shown)]


def _run(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout
