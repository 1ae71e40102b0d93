"""Names of the system calls that QEMU's threads sleep in (x86-64 numbers)."""

from __future__ import annotations

from collections.abc import Iterable

KVM_RUN = 0xAE80
IOCTL = 16
# A vCPU thread in this one is not waiting: its guest runs, or is halted.
RUNNING_GUEST = "ioctl(KVM_RUN)"

NAMES = {
    0: "read", 1: "write", 7: "poll", 16: "ioctl", 17: "pread64", 18: "pwrite64", 19: "readv",
    20: "writev", 23: "select", 34: "pause", 35: "nanosleep", 42: "connect", 43: "accept",
    44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 74: "fsync",
    75: "fdatasync", 77: "ftruncate", 128: "rt_sigtimedwait", 130: "rt_sigsuspend", 202: "futex",
    208: "io_getevents", 219: "restart_syscall", 230: "clock_nanosleep", 232: "epoll_wait",
    270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 285: "fallocate", 288: "accept4",
    295: "preadv", 296: "pwritev", 299: "recvmmsg", 307: "sendmmsg", 327: "preadv2",
    328: "pwritev2", 333: "io_pgetevents", 426: "io_uring_enter", 441: "epoll_pwait2",
}  # fmt: skip


def syscall_name(number: int, second_argument: int = 0) -> str:
    """The call's name; ``syscall 600`` when it is none that QEMU is known to sleep in."""
    if number == IOCTL and second_argument == KVM_RUN:
        return RUNNING_GUEST
    return NAMES.get(number, f"syscall {number}")


# What a system call that sleeps returns when it is stopped: -EINTR, or that it goes on later
# (-ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND, -ERESTART_RESTARTBLOCK).
INTERRUPTED = frozenset({-4, -512, -513, -514, -516})
RESTART = "restart_syscall"
# Those with a time-out; a name before any that it contains.
RESTARTED = ("futex", "clock_nanosleep", "nanosleep", "ppoll", "poll")


def sleeps(result: int) -> bool:
    """Whether a stopped thread in a system call slept there, by what rax holds.

    Whatever else it holds, the call had returned: the thread was on its way out of the kernel.
    """
    return result - (1 << 64) in INTERRUPTED


def restarted(name: str, frames: Iterable[str]) -> str:
    """What ``restart_syscall`` was: the C library's innermost function tells."""
    if name != RESTART:
        return name
    function = next(iter(frames), "").partition("+")[0]
    if function.startswith(("pthread_cond_", "__futex", "__lll_lock", "sem_")):
        return "futex"
    return next((call for call in RESTARTED if call in function), name)
