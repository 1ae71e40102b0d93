"""What a look at a QEMU finds: plain data, the same for a live process, a core and gdb."""

from __future__ import annotations

from dataclasses import dataclass, field

from qtrace.knowledge import DELETED, IDLE, ONESHOT, PENDING, SCHEDULED, WITHOUT_MAIN_LOOP
from qtrace.machine.parts import part

FLAG_NAMES = (
    (PENDING, "PENDING"), (SCHEDULED, "SCHEDULED"), (DELETED, "DELETED"), (ONESHOT, "ONESHOT"),
    (IDLE, "IDLE"),
)  # fmt: skip
# In place of a system call's name: a thread that sleeps in the kernel without having called it, or
# a guest's page fault inside KVM_RUN.
PAGE_FAULT = "page fault"
# Where the kernel lets such a one wait for who serves it (fs/userfaultfd.c).
USERFAULT = "handle_userfault"
JOB_TYPES = (
    "commit", "stream", "mirror", "backup", "create", "amend", "snapshot-load", "snapshot-save",
    "snapshot-delete",
)  # fmt: skip
JOB_STATUSES = (
    "undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending",
    "aborting", "concluded", "null",
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """An AioContext. ``name``: ``main``, ``iohandler``, ``iothread:<id>``, or empty.

    ``tid`` is the thread whose loop owns it, 0 when not known. ``address`` is 0 for one that a
    thread polls and that cannot be told.
    """

    address: int
    name: str
    tid: int = 0

    @property
    def label(self) -> str:
        return self.name or (f"{self.address:#x}" if self.address else "?")

    @property
    def quoted(self) -> str:
        """For sentences."""
        return f"`{self.label}`" if self.address else "a context that cannot be told"


@dataclass(frozen=True)
class BottomHalf:
    """A queued QEMUBH. ``name`` is as in QEMU's source, empty where ``Layout.bh_name`` is None.

    ``cb`` and ``opaque`` are None where the binary does not show where they lie.
    ``in_slice``: an aio_bh_poll() has taken it from the list and not run it yet.
    """

    address: int
    ctx: int
    name: str
    cb: int | None
    opaque: int | None
    flags: int
    in_slice: bool = False

    @property
    def label(self) -> str:
        """Without a name it is called by its callback's address, without that by its own."""
        return self.name or (f"{self.cb:#x}" if self.cb else f"bh@{self.address:#x}")

    @property
    def will_run(self) -> bool:
        """It is neither cancelled nor deleted: its callback is called when it is dequeued."""
        return self.flags & (SCHEDULED | DELETED) == SCHEDULED

    @property
    def flag_names(self) -> str:
        return "|".join(name for bit, name in FLAG_NAMES if self.flags & bit)


@dataclass(frozen=True)
class Handler:
    """An AioHandler: callbacks (0 for none) on a file descriptor; None: not to be told."""

    address: int
    ctx: int
    fd: int
    events: int
    io_read: int | None
    io_write: int | None
    opaque: int | None
    deleted: bool | None


@dataclass(frozen=True)
class Coroutine:
    """A Coroutine. ``caller`` is 0 when it is not entered (it sleeps), ``ctx`` where it runs."""

    address: int
    entry: int
    entry_arg: int
    caller: int | None
    ctx: int | None


@dataclass(frozen=True)
class Job:
    """A job: ``kind`` and ``status`` as in QAPI, empty when not known; ``co`` its coroutine, 0
    for none, None when not known."""

    address: int
    id: str
    kind: str
    status: str
    co: int | None


@dataclass(frozen=True)
class Poll:
    """One aio_poll() on a thread's stack: of which context, at which frame (0 is the leaf)."""

    ctx: int
    frame: int


@dataclass(frozen=True)
class Futex:
    """The futex that a thread sleeps on: its address, the word there now, and the one 8 bytes on,
    which is the owner's tid where it is a pthread_mutex_t. None: not to be read."""

    address: int
    word: int | None
    owner: int | None


@dataclass(frozen=True)
class Thread:
    """A thread at one moment.

    Attributes:
        tid, name, role: see ``qtrace.roles.Role``; the name may be empty (cores).
        blocked_in: the system call it sleeps in (``ppoll``), or ``PAGE_FAULT``; empty when it
            runs.
        frames: function names with offsets (``aio_poll+0x356``), leaf first; empty when it runs.
        whole: the chain was read consistently and reaches the thread's first function.
        polls: the aio_poll() frames, innermost first; ctx 0 where it cannot be told.
        waits_at: stack pointer and pc, what tells two waits apart.
        cpu_ns: the processor time it has used so far; equal in two looks when it did not run
            between them. 0 where it is not known.
        turns: how many times it has been given a processor so far; 0 where it is not known.
        state: as ps(1) shows it (``R``, ``S``, ``D``, ``T``, ``t``), empty where it is not known.
        wchan: the kernel's function that it sleeps in, empty where that is not known.
        arguments: those of the system call that it sleeps in.
        futex: what it sleeps on in futex(); None when in another call.
        outside: what it waits for outside of the process, as half a sentence (``on fd 10, unix
            socket nbd.sock, whose other end is ...``); empty when that was not asked for, or does
            not show.
        asleep_since_ns: since when at the latest it has not run, by the clock of ``time_ns``; 0
            when that was not asked for, or does not show.
    """

    tid: int
    name: str
    role: str
    blocked_in: str
    frames: tuple[str, ...] = ()
    whole: bool = False
    polls: tuple[Poll, ...] = ()
    waits_at: tuple[int, int] = (0, 0)
    cpu_ns: int = 0
    # A thread of the kernel's (KVM's, vhost's) that bears the process's id.
    kernel: bool = False
    turns: int = 0
    state: str = ""
    wchan: str = ""
    arguments: tuple[int, ...] = ()
    futex: Futex | None = None
    outside: str = ""
    asleep_since_ns: int = 0

    @part
    def functions(self) -> list[str]:
        """The frames without offsets."""
        # A look asks for those of each thread a handful of times, and so do those after it, of who
        # has not run.
        return [frame.split("+0x")[0] for frame in self.frames]

    @property
    def label(self) -> str:
        known = self.role if self.role == "main" else self.name or self.role
        return f"{self.tid} ({known or 'thread'})"


@dataclass(frozen=True)
class Ending:
    """The signal that a core was written for (``SIGABRT``), and the thread that it hit.

    ``sender`` is who sent it from outside, 0 for a fault of QEMU's own; ``message`` is what
    abort() was told, as by a failed assertion, else empty.
    """

    signal: str
    tid: int
    sender: int = 0
    message: str = ""


@dataclass(frozen=True)
class Look:
    """All of one look.

    Attributes:
        torn: names what changed too fast to be read, or is not there (a core that is cut off).
        missing: the facts of the layout that the binary does not show.
        unread: addresses of the contexts whose bottom halves cannot be read; ``unread_handlers``
            and ``unread_coroutines`` likewise. They are torn, or a fact is missing.
        jobs: None where they cannot be read.
        dark: the threads of which it cannot be read whether they have a context of their own;
            the main thread when the main loop's contexts cannot be read.
        absent: in words, the mapped files that stacks lead through and that are not here, or are
            other builds.
    """

    time_ns: int
    contexts: tuple[Context, ...] = ()
    bottom_halves: tuple[BottomHalf, ...] = ()
    handlers: tuple[Handler, ...] = ()
    scheduled: tuple[Coroutine, ...] = ()
    jobs: tuple[Job, ...] | None = ()
    threads: tuple[Thread, ...] = ()
    # Tid of the BQL's holder, 0 when nobody holds it, None when not known; and its mutex's address,
    # 0 in a program without one.
    bql_holder: int | None = None
    bql: int | None = None
    # The threads that a synchronize_rcu() waits for; None: not to be read.
    rcu_readers: tuple[int, ...] | None = ()
    # How the process of a core ended; None when it lives, or was only copied (gcore).
    ending: Ending | None = None
    # Why nothing in the process can move ("stopped by SIGSTOP", "held by a tracer, process 12
    # (gdb)", "frozen by its cgroup /x"), empty while it can: that nothing moves shows nothing then.
    held: str = ""
    # The program's main thread has a main loop (qemu-img and its like only poll).
    main_loop: bool = True
    torn: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unread: tuple[int, ...] = ()
    unread_handlers: tuple[int, ...] = ()
    unread_coroutines: tuple[int, ...] = ()
    dark: tuple[int, ...] = ()
    absent: tuple[str, ...] = ()
    # Facts on which the code says otherwise than debug info, which is believed.
    differing: tuple[str, ...] = ()
    # The coroutine's own stack, leaf first, by its address; that of one that runs is its thread's.
    coroutine_frames: dict[int, tuple[str, ...]] = field(default_factory=dict)
    # The coroutines of jobs that are entered, and the tid of the thread that is in them, 0 where
    # it does not show. One with frames of its own has entered another.
    awake: dict[int, int] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        return bool(self.held)

    def context(self, ctx: int) -> Context:
        return next((c for c in self.contexts if c.address == ctx), Context(ctx, ""))

    def thread(self, tid: int) -> Thread | None:
        return next((t for t in self.threads if t.tid == tid), None)


def has_main_loop(program: str) -> bool:
    """Whether a program's main thread runs a main loop; that of qemu-img and its like polls."""
    # NixOS's are called `.qemu-img-wrapped`.
    return program.removeprefix(".").removesuffix("-wrapped") not in WITHOUT_MAIN_LOOP
