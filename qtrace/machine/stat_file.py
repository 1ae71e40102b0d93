"""/proc/PID/stat, and that of a thread: its fields by the numbers of proc(5)."""

from __future__ import annotations

STATE, MINFLT, MAJFLT, UTIME, STIME, STARTTIME, VSIZE = 3, 10, 12, 14, 15, 22, 23
STARTCODE, STARTSTACK = 26, 28
SIGNAL, PROCESSOR, EXIT_CODE = 31, 39, 52


def stat_fields(text: str) -> list[str]:
    """The fields, at their numbers; those up to the name, which may be anything, are empty.

    Nothing at all of an empty text: the process is gone.
    """
    behind = text.rpartition(")")[2].split()
    return ["", "", "", *behind] if behind else []


def state_letter(text: str) -> str:
    """A thread's state as ps(1) shows it; empty when it is gone."""
    return "".join(stat_fields(text)[STATE : STATE + 1])
