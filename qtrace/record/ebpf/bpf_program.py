"""A BPF program of probes/ in the kernel: its functions and maps."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

from qtrace.errors import RecorderUnavailable
from qtrace.host.bpf_syscall import MAP_CREATE, TRACE_UPROBE_MULTI, bpf, load_program
from qtrace.host.capabilities import check_ring_buffer
from qtrace.record.ebpf.bcc_module import load_bcc
from qtrace.record.ebpf.bpf_image import Image, MapSpec, ProbeSource, get_image
from qtrace.record.ebpf.uprobes import links_work

ARRAY_OF_MAPS = 12  # BPF_MAP_TYPE_ARRAY_OF_MAPS


class Program:
    """Loaded from the cached image, or from a fresh one when the kernel refuses that.

    Attributes:
        functions: file descriptor of each function.
        maps: file descriptor of each map.
        layouts: per ring buffer, offset and size of each field of its struct.
        specs: how each map was made.
        library: libbcc, for what else its caller does with these descriptors.

    Raises RecorderUnavailable when bcc, its headers or the kernel refuse.
    """

    def __init__(self, source: ProbeSource) -> None:
        self.library: Any = load_bcc().lib
        try:
            image = get_image(source)
            try:
                self._load(image)
            except OSError:
                image = get_image(source, fresh=True)
                self._load(image)
        except (OSError, RecorderUnavailable) as error:
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
        self.layouts = image.layouts

    def _load(self, image: Image) -> None:
        self.maps: dict[str, int] = {}
        self.functions: dict[str, int] = {}
        self.specs = image.maps
        for name, spec in image.maps.items():
            # Its inner map is declared before it.
            inner = next(reversed(self.maps.values()), 0) if spec.type == ARRAY_OF_MAPS else 0
            self.maps[name] = self.create_map(name, spec, inner)
        for name in image.functions:
            code = image.code(name, self.maps)
            kind = TRACE_UPROBE_MULTI if links_work() else 0
            self.functions[name] = load_program(code, name, kind)

    def create_map(self, name: str, spec: MapSpec, inner: int = 0) -> int:
        """One more map, its file descriptor. Raises OSError."""
        return bpf(MAP_CREATE, struct.pack("<7I16s", *astuple(spec), inner, 0, name.encode()[:15]))

    def set_inner_map(self, name: str, index: int, fd: int) -> None:
        """Put a map into an array of maps. Raises OSError."""
        self._update(name, ctypes.c_int(index), ctypes.c_int(fd))

    def set_main_stack(self, end: int) -> None:
        """Where the main thread's stack begins, 0 when unknown. Raises OSError."""
        self._update("main_stack", ctypes.c_int(0), ctypes.c_uint64(end))

    def set_stack_end(self, page: int, end: int) -> None:
        """No more than up to there is needed of a stack whose pointer is in that page.

        Raises OSError.
        """
        self._update("stack_ends", ctypes.c_uint64(page), ctypes.c_uint64(end))

    def count_losses(self, on: bool) -> None:
        """Whether what finds no room counts from now on: a new program counts nothing.

        Raises OSError.
        """
        self._update("recording", ctypes.c_int(0), ctypes.c_uint32(on))

    def _update(self, name: str, key: Any, value: Any) -> None:
        fd = self.maps[name]
        if self.library.bpf_update_elem(fd, ctypes.byref(key), ctypes.byref(value), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"map {name}: {os.strerror(number)}")

    def close(self) -> None:
        """Let the kernel drop it, as far as nothing is attached."""
        for fd in (*self.functions.values(), *self.maps.values()):
            os.close(fd)

    def counts(self, name: str) -> Iterator[tuple[int, int]]:
        """The entries of a hash map from u64 to u64."""
        fd = self.maps[name]
        key, following, value = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()
        found = self.library.bpf_get_first_key(fd, ctypes.byref(key), 8)
        while found == 0:
            if self.library.bpf_lookup_elem(fd, ctypes.byref(key), ctypes.byref(value)) == 0:
                yield key.value, value.value
            found = self.library.bpf_get_next_key(fd, ctypes.byref(key), ctypes.byref(following))
            key.value = following.value


# 16 MiB: some 10,000 hits of which little stack is needed, 420 with as much as is ever copied.
RING_PAGES = 4096
RING_PAGES_BESIDE_ALL = 2048
# 2 MiB: 15,000 steps of QMP commands and changes of jobs.
STEP_RING_PAGES = 512
# With a copy of the stack; without; and what only QMP and jobs are told by.
FUNCTIONS = ("on_hit", "on_return", "on_command", "on_step")
MAPS = ("events", "steps", "steps_met", "lost", "main_stack", "stack_ends", "recording")


def load_watch(ring_pages: int = RING_PAGES, step_ring_pages: int = STEP_RING_PAGES) -> Program:
    """probes/watch.bpf.c, with ring buffers of so many pages (powers of two)."""
    defines = (("RING_PAGES", ring_pages), ("STEP_RING_PAGES", step_ring_pages))
    return Program(ProbeSource("watch.bpf.c", FUNCTIONS, MAPS, defines))


def load_ahead(
    ring_pages: int = RING_PAGES,
    step_ring_pages: int = STEP_RING_PAGES,
    *,
    everything: bool = False,
) -> Future[Program]:
    """Start loading in the background: clang, if need be, runs while Python scans.

    ``everything``: beside the probes of `--all`, whose loop comes by fifty times a second.
    """
    ring_pages = min(ring_pages, RING_PAGES_BESIDE_ALL) if everything else ring_pages
    pool = ThreadPoolExecutor(1, "qtrace-bpf")
    future = pool.submit(load_watch, ring_pages, step_ring_pages)
    pool.shutdown(wait=False)
    return future
