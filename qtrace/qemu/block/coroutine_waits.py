"""What a coroutine sleeps in, as the functions on its stack tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qtrace.qemu.aio.mechanics import command_of, telling
from qtrace.qemu.block.block_model import ASLEEP, Coroutine

# Somebody outside of QEMU, by a descriptor: to answer, to take what is sent, to send.
REPLY, ROOM, DATA = "reply", "room", "data"
# A server to be connected again (reconnect-delay of NBD).
CONNECT = "connect"
# A worker thread, or the kernel itself, has it in hand.
WORKER, KERNEL = "worker", "kernel"
# Another coroutine of QEMU's.
MUTEX, QUEUE, TASKS, GRAPH = "mutex", "queue", "tasks", "graph"
# A worker thread, all of which have other work.
QUEUED = "queued"
# Another one that waits for it in turn.
DEADLOCK = "deadlock"
THROTTLED, TIMER, JOB, MONITOR, COMMAND, OTHER = (
    "throttled", "timer", "job", "monitor", "command", "other",
)  # fmt: skip
# What outsiders have in hand.
OUTSIDE = frozenset({REPLY, ROOM, DATA, CONNECT, WORKER, KERNEL})
# What waits for what other coroutines have in hand.
BEHIND = frozenset({MUTEX, QUEUE, TASKS, GRAPH, QUEUED})


@dataclass(frozen=True)
class CoroutineWait:
    """Its kind (a constant of this module), and in words what the coroutine does."""

    kind: str
    text: str


IO_URING = "(io_uring)"
# Who waits in a queue and is called by this function, is throttled.
THROTTLE = "throttle_group_co_io_limits_intercept"
# Exported functions, so that stripped binaries have them; nearest the leaf wins.
WAITS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(f"(?:{names})\\Z"), kind, text)
    for names, kind, text in (
        (r"qemu_co_mutex_lock(_slowpath)?", MUTEX, "waits for a CoMutex"),
        (r"qemu_co_rwlock_(rd|wr)lock|qemu_co_rwlock_\w+", MUTEX, "waits for a CoRwlock"),
        (THROTTLE, THROTTLED, "is throttled"),
        (r"nbd_co_(do_)?establish_connection", CONNECT, "waits to be connected to its server"),
        (r"thread_pool_submit_co", WORKER, "waits for a worker thread"),
        (r"luring_co_submit", KERNEL, f"waits for the kernel {IO_URING}"),
        (r"laio_co_submit", KERNEL, "waits for the kernel (Linux AIO)"),
        (r"bdrv_graph_co_rdlock", GRAPH, "waits for the graph lock"),
        (r"bdrv_(co_yield_to_drain|co_drain\w*)", OTHER, "waits for a drain"),
        (r"aio_task_pool_wait_\w+", TASKS, "waits for its own tasks"),
        (r"qemu_co_queue_wait_impl", QUEUE, "waits in a queue"),
        (r"qemu_co_sleep\w*", TIMER, "sleeps on a timer"),
        (r"job_(yield|sleep_ns|pause_point|sleep_\w+)", JOB, "is a job that sleeps"),
        (r"block_job_ratelimit_sleep", JOB, "is a job that keeps to its speed limit"),
    )
)
CHANNEL = "qio_channel_yield"
# On the way to the channel: who sends, and who waits for an answer.
SENDS = re.compile(r"qio_channel_(writev?|send)\w*")
ANSWER = re.compile(r"nbd_receive_\w+|nbd_co_(do_)?receive\w*")
DISPATCHER = "monitor_qmp_dispatcher_co"
DISPATCH = "qmp_dispatch"
# Requests that the block layer does not track are known by who makes them.
FLUSHES, BLOCK_STATUS = "flush", "block status query"
UNTRACKED = tuple(
    (re.compile(rf"(?:{names})\Z"), what)
    for names, what in (
        (r"(bdrv|blk)_co_(do_)?flush", FLUSHES),
        (r"(bdrv|blk)_\w*(block_status|is_allocated|is_zero)\w*", BLOCK_STATUS),
        (r"(bdrv|blk)_(co_)?(do_)?ioctl", "ioctl"),
        (r"(bdrv|blk)_\w+", "operation"),
    )
)


def wait_of(co: Coroutine) -> CoroutineWait:
    """What a coroutine sleeps in."""
    if co.state != ASLEEP:
        return CoroutineWait(OTHER, f"{co.state} in thread {co.tid}" if co.tid else co.state)
    return _wait(tuple(co.functions))


# A thousand coroutines wait in a handful of ways.
@lru_cache(maxsize=1024)
def _wait(functions: tuple[str, ...]) -> CoroutineWait:
    for number, function in enumerate(functions):
        if function == CHANNEL:
            return _channel(functions, number)
        if function == DISPATCHER:
            return _monitor(functions)
        for names, kind, text in WAITS:
            if names.match(function):
                if kind == QUEUE and THROTTLE in functions[number : number + 3]:
                    break
                return CoroutineWait(kind, text)
    told = " < ".join(telling(functions)[:3])
    return CoroutineWait(OTHER, f"sleeps in {told}" if told else "sleeps")


def _channel(functions: tuple[str, ...], at: int) -> CoroutineWait:
    above = functions[at + 1 :]
    # The nearest of them: what is sent and what is waited for have frames in common further up.
    for function in above:
        if SENDS.match(function):
            return CoroutineWait(ROOM, "waits for room to send")
        if ANSWER.match(function):
            return CoroutineWait(REPLY, "waits for a reply")
    return CoroutineWait(DATA, "waits for data")


def _monitor(functions: tuple[str, ...]) -> CoroutineWait:
    if DISPATCH not in functions:
        return CoroutineWait(MONITOR, "is the monitor, which waits for a command")
    command = command_of(functions)
    return CoroutineWait(COMMAND, f"is in {command or 'a monitor command'}")


def untracked(co: Coroutine) -> str:
    """What a coroutine has in hand that is no tracked request, in a word; empty where it has
    nothing of a disk's that somebody outside keeps it waiting for."""
    told = [what for names, what in UNTRACKED if any(map(names.match, co.functions))]
    if told[:1] == [FLUSHES]:
        return FLUSHES
    return told[0] if told and wait_of(co).kind in OUTSIDE else ""
