"""What threads of a live QEMU wait for outside of it: which file, and which process.

By the arguments of the system call that a thread sleeps in, and what the host tells of them
(qtrace/host): nothing of the target's is opened or asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qtrace.host.descriptors import Descriptors
from qtrace.host.owners import O_RDONLY, access, fdinfo
from qtrace.host.sleeping import asleep_since_ns
from qtrace.inspection.looker import Looker
from qtrace.machine.memory import read_word
from qtrace.process.call_arguments import (
    OF_DESCRIPTOR,
    OF_PATH,
    READING,
    WRITING,
    Child,
    Descriptor,
    Epoll,
    Path,
    waited_for,
)
from qtrace.process.live_source import LiveSource
from qtrace.process.maps import read_maps
from qtrace.process.own_memory import own_memory
from qtrace.qemu.aio.mechanics import DISPATCHERS, MECHANICS
from qtrace.qemu.aio.model import PAGE_FAULT, USERFAULT, Look, Thread
from qtrace.qemu.aio.waits import in_loop, is_polling
from qtrace.qemu.qom import Objects

# include/hw/qdev-core.h: DeviceState is its Object, its id and its canonical path, and more.
CANONICAL_PATH, LONGEST_PATH = 0x30, 256
# Beyond these a register may hold what an earlier callback was for.
OUTERMOST = DISPATCHERS | {"cpu_exec", "kvm_cpu_exec", "tcg_cpus_exec", "tcg_cpu_exec"}
# Who makes a device (qom/object.c, hw/core/qdev.c): outside of it a register may hold another one,
# and inside it has no path yet.
MAKING = frozenset({
    "object_property_set", "object_property_set_bool", "qdev_realize", "qdev_realize_and_unref",
    "qdev_device_add", "qdev_device_add_from_qdict",
})  # fmt: skip
OUTSIDE_CALLS = READING | WRITING | OF_DESCRIPTOR | OF_PATH.keys()
# Of a poll of very many descriptors so many are told.
TOLD = 3
# chardev/char.c: who writes to a character device whose other end does not take it tries again
# and again, with the BQL, every 100 us.
CHARDEV_WRITES = ("qemu_chr_write", "qemu_chr_fe_write_all", "qemu_chr_fe_write")
RETRIES = frozenset({"", "nanosleep", "clock_nanosleep"})
# fs/pipe.c: whoever sleeps here shows that a path is one of a named pipe.
PIPE_SLEEPS = ("pipe_", "anon_pipe_", "fifo_", "wait_for_partner")


def with_outside(looker: Looker, look: Look, tids: Iterable[int]) -> Look:
    """A look whose threads ``tids`` have ``outside`` and ``asleep_since_ns``, where that shows."""
    wanted = frozenset(tids)
    if not wanted or not isinstance(looker.source, LiveSource):
        return look
    outside = Outside(looker)
    threads = tuple(
        outside.added_to(look, thread) if thread.tid in wanted else thread
        for thread in look.threads
    )
    return replace(look, threads=threads)


def bystanders(look: Look) -> set[int]:
    """The threads of which nothing shows that others wait for them, and which sleep in a call that
    somebody outside has to end: who polls may wait for what they do (an NBD client's connection
    is made by a thread of its own, nbd/client-connection.c)."""
    return {
        thread.tid
        for thread in look.threads
        if thread.role in ("other", "migration") and thread.blocked_in in OUTSIDE_CALLS
    }


class Outside:
    """What the threads of one QEMU wait for, at one moment."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._pid = looker.source.pid
        self._memory = looker.source.memory
        # A register may hold anything, also where the guest's memory lies.
        self._objects = Objects(own_memory(looker.source))
        self.descriptors = Descriptors(self._pid)

    def added_to(self, look: Look, thread: Thread) -> Thread:
        """The thread, with what is told of it."""
        since_ns = asleep_since_ns(self._pid, thread.tid) if thread.blocked_in else None
        device, outside = self.device(thread), self.of(look, thread)
        told = ", ".join(part for part in (device, outside) if part)
        return replace(thread, outside=told, asleep_since_ns=since_ns or 0)

    def device(self, thread: Thread) -> str:
        """For which device a thread does what it waits in; empty where none shows.

        That is the innermost one in a register that its functions keep over their calls, from the
        leaf up to whoever dispatched them.
        """
        within = next((f for f in thread.functions if f in CHARDEV_WRITES), "")
        names, frames = self._looker.frames_of(thread.tid, within)
        first = next((n for n, name in enumerate(names) if not MECHANICS.match(name)), len(names))
        ends = OUTERMOST | MAKING
        last = next((n for n, f in enumerate(names) if n > first and f in ends), len(names))
        being_made = last < len(names) and names[last] in MAKING
        for frame in frames[first:last]:
            for value in frame.registers.values():
                device = self._device(value)
                path = self._path(device) if device else ""
                if device and (path or being_made):
                    return f"for device {self._objects.type_of(device)} {path}".rstrip()
        return ""

    def _device(self, address: int) -> int:
        """The device that an object is, or whose memory region it is; 0 where it is none. (A vCPU
        is one to QOM, and none to people; so is what a migration keeps, without a path.)"""
        objects = self._objects
        if objects.type_of(address) == "memory-region":
            return next((o for o in objects.inside(address) if objects.is_a(o, "device")), 0)
        device = objects.is_a(address, "device") and not objects.is_a(address, "cpu")
        return address if device else 0

    def _path(self, device: int) -> str:
        """Where it is in QEMU's tree, as ``/machine/peripheral/vd/virtio-backend``; empty where
        that does not show."""
        address = read_word(self._memory, device + CANONICAL_PATH)
        raw = self._memory.read(address, LONGEST_PATH) if address else b""
        text, end, _rest = raw.partition(b"\0")
        shown = end and text.startswith(b"/machine/")
        return text.decode("utf-8", "backslashreplace") if shown else ""

    def of(self, look: Look, thread: Thread) -> str:
        """As ``Thread.outside``."""
        if thread.blocked_in == PAGE_FAULT:
            return self._page_fault(look, thread)
        if thread.blocked_in in RETRIES:
            return self._chardev(thread)
        if is_polling(thread):
            # For whatever its context has: that is told of the context, not of the call.
            return ""
        waited = waited_for(self._memory, thread.blocked_in, thread.arguments)
        parts = [self._in_words(one, thread.wchan) for one in waited[:TOLD]]
        text = " or ".join(dict.fromkeys(part for part in parts if part))
        more = len(waited) - TOLD
        return text + (f" or {more} more" if text and more > 0 else "")

    def _in_words(self, waited: Descriptor | Path | Epoll | Child, wchan: str) -> str:
        descriptors = self.descriptors
        if isinstance(waited, Path):
            is_pipe = wchan.startswith(PIPE_SLEEPS)
            return f"of {descriptors.path(waited.path, waited.dirfd, is_pipe=is_pipe).text}"
        if isinstance(waited, Child):
            return f"for {descriptors.peer(waited.pid).text}" if waited.pid else ""
        if isinstance(waited, Epoll):
            fds = descriptors.polled(waited.fd)
            told = " or ".join(f"on {descriptors.describe(fd).text}" for fd in fds[:TOLD])
            return told + (f" or {len(fds) - TOLD} more" if len(fds) > TOLD else "")
        if waited.connects_to:
            return f"to {descriptors.connecting(waited.fd, waited.connects_to).text}"
        is_pipe = wchan.startswith(PIPE_SLEEPS)
        found = descriptors.describe(waited.fd, writes=waited.writes, is_pipe=is_pipe)
        return f"on {found.text}"

    def _chardev(self, thread: Thread) -> str:
        """The file that a character device writes to in vain; empty when none is written to."""
        function = next((f for f in thread.functions if f in CHARDEV_WRITES), "")
        if not function:
            return ""
        names, frames = self._looker.frames_of(thread.tid, function)
        last = names.index(function) + 2 if names else 0
        words = self._looker.words_in(frames[:last])
        found = [word for word in words if self._objects.type_of(word).startswith("chardev-")]
        if not found:
            return ""
        kind = self._objects.type_of(found[0])
        is_pipe = kind == "chardev-pipe"
        for fd in self._descriptors_of(found[0]):
            if access(fdinfo(self._pid, fd)) not in (None, O_RDONLY):
                text = self.descriptors.describe(fd, writes=True, is_pipe=is_pipe).text
                return f"on a {kind}, {text}"
        return f"on a {kind}"

    def _descriptors_of(self, owner: int) -> list[int]:
        """Those of an object's channels, and of theirs (TLS has one of its own)."""
        objects, found = self._objects, []
        channels = [c for c in objects.inside(owner) if objects.type_of(c).startswith("qio-")]
        inner = [c for o in channels for c in objects.inside(o) if c not in channels]
        for channel in [*channels, *inner]:
            # QIOChannelFile, -Socket and -Command have it next to what they have in common.
            at = objects.size_of_parent(channel, "qio-channel")
            raw = self._memory.read(channel + at, 4) if at else b""
            if len(raw) == 4 and not raw[3]:
                found.append(int.from_bytes(raw, "little"))
        return list(dict.fromkeys(found))

    def _page_fault(self, look: Look, thread: Thread) -> str:
        """Who brings a page. In postcopy that is a thread of QEMU's own, from the source."""
        if not thread.wchan.startswith(USERFAULT):
            return self._mapped()
        found = []
        for other in look.threads:
            if other.role == "migration" and other.blocked_in and not in_loop(look, other):
                text = self.of(look, other)
                if "socket" in text or "TCP" in text:
                    found.append(f"{other.label} waits {text}")
        return f"while {' and '.join(found)}" if found else ""

    def _mapped(self) -> str:
        """Of which file a page may be: of those that the process has mapped the only one that
        another process serves (FUSE). Which address is missing does not show."""
        paths = {mapping.path for mapping in read_maps(self._pid) if mapping.path.startswith("/")}
        found = [self.descriptors.path(path) for path in sorted(paths)]
        served = [one for one in found if one.mount is not None and one.mount.is_fuse]
        return f"perhaps in {served[0].text}" if len(served) == 1 else ""
