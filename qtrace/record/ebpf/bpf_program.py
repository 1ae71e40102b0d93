"""A BPF program of probes/ in the kernel: its functions and maps."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, replace
from mmap import PAGESIZE

from qtrace.errors import RecorderUnavailable
from qtrace.host import privileges
from qtrace.host.bpf_syscall import (
    MAP_CREATE,
    PROG_TYPE_KPROBE,
    PROG_TYPE_RAW_TRACEPOINT,
    TRACE_UPROBE_MULTI,
    bpf,
    load_program,
    map_entries,
    update_map,
)
from qtrace.host.capabilities import check_ring_buffer
from qtrace.host.pid_namespace import own_namespace
from qtrace.host.uprobe_links import links_work
from qtrace.record.ebpf.bpf_image import (
    AT_TRACEPOINTS,
    NOTHING,
    PROGRAMS,
    Filling,
    Image,
    MapSpec,
    get_image,
)

ARRAY_OF_MAPS = 12  # BPF_MAP_TYPE_ARRAY_OF_MAPS
INDEX, WORD = struct.Struct("<I"), struct.Struct("<Q")


class Program:
    """Functions of one of ``PROGRAMS``, filled in and loaded.

    Args:
        file: which.
        functions: by the name of each: the one of the source that it is made from, and what fills
            its holes.
        sizes: entries of the maps that are larger than in the source; of ring buffers, bytes.
        compiled: by the bcc of this host, not as they come with qtrace.

    Attributes:
        functions: file descriptor of each function.
        maps: file descriptor of each map.
        layouts: per ring buffer, offset and size of each field of its struct.
        specs: how each map was made.
        note: why it was compiled though nobody asked for that; else empty.

    Raises RecorderUnavailable when the kernel refuses, or the compiler where one is needed.
    """

    def __init__(
        self,
        file: str,
        functions: Mapping[str, tuple[str, Filling]],
        sizes: Mapping[str, int],
        *,
        compiled: bool = False,
    ) -> None:
        self.maps: dict[str, int] = {}
        self.functions: dict[str, int] = {}
        try:
            image, self.note = get_image(file, compiled=compiled)
            self.layouts = image.layouts
            self.specs = {
                name: replace(spec, max_entries=sizes.get(name, spec.max_entries))
                for name, spec in image.maps.items()
            }
            self._load(image, functions, at_tracepoint=file in AT_TRACEPOINTS)
        except (OSError, RecorderUnavailable) as error:
            self.close()
            # Of a kernel without ring buffers neither clang nor bpf(2) says so.
            ring = check_ring_buffer()
            if not ring.ok:
                raise RecorderUnavailable(f"{ring.name}: {ring.detail}", ring.remedy) from error
            if isinstance(error, RecorderUnavailable):
                raise
            raise RecorderUnavailable(
                f"the kernel does not take the BPF program: {error}",
                "qtrace doctor says what is missing",
            ) from error

    def _load(
        self,
        image: Image,
        functions: Mapping[str, tuple[str, Filling]],
        *,
        at_tracepoint: bool,
    ) -> None:
        for name, spec in self.specs.items():
            # Its inner map is declared before it.
            inner = next(reversed(self.maps.values()), 0) if spec.type == ARRAY_OF_MAPS else 0
            self.maps[name] = self.create_map(name, spec, inner)
        kind = PROG_TYPE_RAW_TRACEPOINT if at_tracepoint else PROG_TYPE_KPROBE
        attach_type = TRACE_UPROBE_MULTI if links_work() and not at_tracepoint else 0
        where = _pid_namespace()
        for name, (function, filling) in functions.items():
            code = image.functions[function].filled(self.maps, {**where, **filling})
            self.functions[name] = load_program(code, name, attach_type, kind)

    def create_map(self, name: str, spec: MapSpec, inner: int = 0) -> int:
        """One more map, its file descriptor. Raises OSError."""
        return bpf(MAP_CREATE, struct.pack("<7I16s", *astuple(spec), inner, 0, name.encode()[:15]))

    def set_inner_map(self, name: str, index: int, fd: int) -> None:
        """Put a map into an array of maps. Raises OSError."""
        update_map(self.maps[name], INDEX.pack(index), INDEX.pack(fd))

    def set_main_stack(self, end: int) -> None:
        """Where the main thread's stack begins, 0 when unknown. Raises OSError."""
        update_map(self.maps["main_stack"], INDEX.pack(0), WORD.pack(end))

    def set_stack_end(self, page: int, end: int) -> None:
        """No more than up to there is needed of a stack whose pointer is in that page.

        Raises OSError.
        """
        update_map(self.maps["stack_ends"], WORD.pack(page), WORD.pack(end))

    def count_losses(self, on: bool) -> None:
        """Whether what finds no room counts from now on: a new program counts nothing.

        Raises OSError.
        """
        update_map(self.maps["recording"], INDEX.pack(0), INDEX.pack(on))

    def is_open_to_all(self) -> bool:
        """Whether who has no capability may use its maps: not before c8644cd0efe7 (Linux 6.0),
        where kernel.unprivileged_bpf_disabled is set."""
        refused: list[PermissionError] = []

        def use() -> None:
            privileges.give_up_here()
            try:
                next(self.counts("lost"), None)
            except PermissionError as error:
                refused.append(error)

        # Capabilities are each thread's own.
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        return not refused

    def close(self) -> None:
        """Let the kernel drop it, as far as nothing is attached."""
        for fd in (*self.functions.values(), *self.maps.values()):
            os.close(fd)

    def counts(self, name: str) -> Iterator[tuple[int, int]]:
        """The entries of a hash map from u64 to u64."""
        for key, value in map_entries(self.maps[name], WORD.size, WORD.size):
            yield WORD.unpack(key)[0], WORD.unpack(value)[0]


def _pid_namespace() -> Filling:
    """What lets threads have the numbers that they have here (probes/thread.h)."""
    own = own_namespace()
    return {
        "NAMESPACED": int(not own.is_first),
        "NAMESPACE_DEVICE": own.device,
        # A move of a constant has a signed one.
        "NAMESPACE_INODE": own.inode - (own.inode >> 31 << 32),
    }


def load_exec(pages: int = 4) -> Program:
    """probes/exec.bpf.c, with a ring buffer of so many pages: 400 programs that start at once."""
    sizes = {"execs": pages * PAGESIZE}
    return Program("exec.bpf.c", {"on_exec": ("on_exec", NOTHING)}, sizes)


# 16 MiB: some 10,000 hits of which little stack is needed, 420 with as much as is ever copied.
RING_PAGES = 4096
RING_PAGES_BESIDE_ALL = 2048
# 2 MiB: 15,000 steps of QMP commands and changes of jobs.
STEP_RING_PAGES = 512


def load_watch(
    ring_pages: int = RING_PAGES,
    step_ring_pages: int = STEP_RING_PAGES,
    *,
    compiled: bool = False,
) -> Program:
    """probes/watch.bpf.c, with ring buffers of so many pages (powers of two)."""
    file = "watch.bpf.c"
    functions = {name: (name, NOTHING) for name in PROGRAMS[file][0]}
    sizes = {"events": ring_pages * PAGESIZE, "steps": step_ring_pages * PAGESIZE}
    return Program(file, functions, sizes, compiled=compiled)


def load_ahead(
    ring_pages: int = RING_PAGES,
    step_ring_pages: int = STEP_RING_PAGES,
    *,
    everything: bool = False,
    compiled: bool = False,
) -> Future[Program]:
    """Start loading in the background, while Python scans.

    ``everything``: beside the probes of `--all`, whose loop comes by fifty times a second.
    """
    ring_pages = min(ring_pages, RING_PAGES_BESIDE_ALL) if everything else ring_pages
    pool = ThreadPoolExecutor(1, "qtrace-bpf")
    future = pool.submit(load_watch, ring_pages, step_ring_pages, compiled=compiled)
    pool.shutdown(wait=False)
    return future
