"""Every error a user can meet: one class each, with its message, remedy and exit status.

The command line prints two lines, what went wrong and how to mend it, and ends with the
exit status; nothing in here knows about the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any


class ExitStatus(IntEnum):
    """What a script learns from any qtrace command."""

    OK = 0
    FINDING = 1
    USAGE = 2
    ENVIRONMENT = 3
    INCONCLUSIVE = 4


class QtraceError(Exception):
    """The base of all of them.

    Attributes:
        message: one line, what went wrong.
        remedy: one line, how to mend it.
        exit_status: the process's exit status.
    """

    exit_status = ExitStatus.ENVIRONMENT

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as it is: most of them are not made of what they say."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[QtraceError], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class TargetError(QtraceError):
    """The process or binary to look at cannot be used."""


class NoSuchProcess(TargetError):
    def __init__(self, pid: int) -> None:
        super().__init__(f"no process with pid {pid}", "qtrace ps lists the QEMU processes here")


class HasChanged(NoSuchProcess):
    """What was being looked at is no more, though its pid is."""

    def __init__(self, pid: int) -> None:
        TargetError.__init__(
            self,
            f"process {pid} is another one by now: it has ended, or runs another program",
            "qtrace ps lists the QEMU processes here",
        )


class HasEnded(TargetError):
    def __init__(self, pid: int) -> None:
        super().__init__(
            f"process {pid} has ended",
            "qtrace ps lists the QEMU processes here",
        )


class NoSuchGuest(TargetError):
    """No QEMU here has a guest of that name, or several have."""

    def __init__(self, name: str, pids: list[int], known: Iterable[str]) -> None:
        if pids:
            message = f"{len(pids)} guests are called {name!r}: {', '.join(map(str, pids))}"
            super().__init__(message, "name one by --pid")
            return
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"the nearest is {near[0]}; " if near else ""
        super().__init__(
            f"no guest is called {name!r}", f"{hint}qtrace ps lists the QEMU processes here"
        )


class NotQemu(TargetError):
    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is not a QEMU program: it has no AioContext code",
            "qtrace ps lists the QEMU processes here",
        )


class NoProc(TargetError):
    """No /proc, or that of others, as in a chroot or a pid namespace."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "mount -t proc proc /proc (unshare --mount-proc, nsenter --all)")


class UnsupportedBinary(TargetError):
    """An ELF file of another class or machine, or no ELF file at all."""


class PermissionMissing(QtraceError):
    """Root or a capability is missing."""


class ScanFailed(TargetError):
    """The code of the binary does not show what is needed."""


class NoMatch(QtraceError):
    """A bottom-half pattern that matches nothing."""

    exit_status = ExitStatus.USAGE


class NoSuchLint(QtraceError):
    exit_status = ExitStatus.USAGE

    def __init__(self, name: str, known: Iterable[str]) -> None:
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"the nearest is {near[0]}; " if near else ""
        super().__init__(f"there is no lint {name!r}", f"{hint}qtrace lints lists them")


class NoSuchInstance(QtraceError):
    """A number, or a row, of no instance in a trace."""

    exit_status = ExitStatus.USAGE


class BadThreshold(QtraceError):
    """A limit that is not of the lint's kind."""

    exit_status = ExitStatus.USAGE


class CodeMismatch(TargetError):
    """The running process's code differs from the file's at a probe site."""


class RecorderUnavailable(QtraceError):
    """eBPF or gdb cannot be used on this host."""


class RecorderFailed(QtraceError):
    """The recorder broke down under way; the target has been put back.

    What was recorded until then is kept.
    """


class OutputExists(QtraceError):
    exit_status = ExitStatus.USAGE

    def __init__(self, path: object) -> None:
        super().__init__(f"{path} exists already", "choose another name, or overwrite with --force")


class OutputFailed(QtraceError):
    """The trace cannot be written (any more)."""


class TraceUnreadable(QtraceError):
    """A file that is no trace, or a broken or foreign one."""


class AutopsyUnreadable(QtraceError):
    """A file that is no autopsy, or a broken one, or of another version."""


class FleetFailed(QtraceError):
    """Recordings, workers or a table of many recordings that cannot be reached."""


class QmpFailed(QtraceError):
    """The QMP socket does not answer as one."""


class ExtraMissing(QtraceError):
    """A library that only some commands need is not installed."""

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(what, f"pip install 'qtrace[{extra}]'")


class MonitorFailed(QtraceError):
    """The monitor cannot go on: its port, its certificate, or the process that listens."""

    def __init__(
        self,
        message: str,
        remedy: str = "choose another --listen HOST:PORT, or see what has that port (ss -ltnp)",
    ) -> None:
        super().__init__(message, remedy)


class LabFailed(QtraceError):
    """The laboratory's guest does not start or does not behave."""
