"""A BPF program of probes/ in the kernel: its functions, maps and ring buffer."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

from qtrace.errors import RecorderUnavailable
from qtrace.recorder.bcc_module import load_bcc
from qtrace.recorder.bpf_image import Image, MapSpec, Source, get_image
from qtrace.recorder.uprobes import links_work
from qtrace.target.bpf import MAP_CREATE, TRACE_UPROBE_MULTI, bpf, load_program
from qtrace.target.host import check_ring_buffer

ARRAY_OF_MAPS = 12  # BPF_MAP_TYPE_ARRAY_OF_MAPS


class Program:
    """Loaded from the cached image, or from a fresh one when the kernel refuses that.

    Attributes:
        functions: file descriptor of each function.
        maps: file descriptor of each map.
        layout: offset and size of each field of the event struct.
        specs: how each map was made.
        library: libbcc, for what else its caller does with these descriptors.

    Raises RecorderUnavailable when bcc, its headers or the kernel refuse.
    """

    def __init__(self, source: Source) -> None:
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
        self.layout = image.layout

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
        key, value = ctypes.c_int(index), ctypes.c_int(fd)
        outer = self.maps[name]
        if self.library.bpf_update_elem(outer, ctypes.byref(key), ctypes.byref(value), 0) != 0:
            raise _os_error(f"map {name}")

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


class RingBuffer:
    """A ring buffer map that is read record by record."""

    def __init__(self, program: Program, name: str, receive: Callable[[int, int], None]) -> None:
        """``receive`` gets the address and the size of each record."""
        self._library = program.library
        # ctypes keeps no reference to it, and a callback cannot raise.
        kind = self._library.bpf_new_ringbuf.argtypes[1]

        def record(_context: object, data: int, size: int) -> int:
            receive(data, size)
            return 0

        self._callback = kind(record)
        self._ring = self._library.bpf_new_ringbuf(program.maps[name], self._callback, None)
        if not self._ring:
            raise RecorderUnavailable(
                f"the kernel has no BPF ring buffer ({os.strerror(ctypes.get_errno())})",
                "use Linux 5.8 or later",
            )

    def poll(self, timeout_ms: int) -> None:
        """Receive what is there, waiting for it at most so long."""
        self._library.bpf_poll_ringbuf(self._ring, timeout_ms)

    def consume(self) -> None:
        """Receive what is there, without waiting."""
        self._library.bpf_consume_ringbuf(self._ring)


def _os_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


# 32 MiB: some 850 hits may wait while Python unwinds one.
RING_PAGES = 8192
RING_PAGES_BESIDE_ALL = 2048
# With a copy of the stack, and without.
FUNCTIONS = ("on_hit", "on_step")


def load_watch(ring_pages: int = RING_PAGES) -> Program:
    """probes/watch.bpf.c, with a ring buffer of so many pages (a power of two)."""
    return Program(
        Source("watch.bpf.c", FUNCTIONS, ("events", "lost"), (("RING_PAGES", ring_pages),))
    )


def load_ahead(ring_pages: int = RING_PAGES, *, everything: bool = False) -> Future[Program]:
    """Start loading in the background: clang, if need be, runs while Python scans.

    ``everything``: beside the probes of `--all`, whose loop comes by fifty times a second.
    """
    ring_pages = min(ring_pages, RING_PAGES_BESIDE_ALL) if everything else ring_pages
    pool = ThreadPoolExecutor(1, "qtrace-bpf")
    future = pool.submit(load_watch, ring_pages)
    pool.shutdown(wait=False)
    return future
