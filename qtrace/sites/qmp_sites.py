"""Where QEMU takes a QMP command, carries it out and answers, and where it tells of jobs.

All of it is rarely run: a few times for each command, once for each change of a job.
"""

from __future__ import annotations

from qtrace.binary.cfi import CallFrames
from qtrace.binary.dataflow import Function, callers_of
from qtrace.binary.elf import Elf
from qtrace.binary.exits import find_exits
from qtrace.binary.symbols import SymbolTable
from qtrace.sites.scan import QmpSite, QmpStep

DISPATCH_BH = "do_qmp_dispatch_bh"
EVENTS: dict[str, QmpStep] = {
    "qapi_event_send_job_status_change": "status",
    "qapi_event_send_stop": "STOP",
    "qapi_event_send_resume": "RESUME",
}
# What qmp_dispatch() hands a command's name to, and as which argument: qmp_find_command(cmds,
# name), compat_policy_input_ok(features, policy, error_class, kind, name, errp).
TAKES_COMMAND = {"qmp_find_command": 1, "compat_policy_input_ok": 4}


def find_qmp_sites(
    elf: Elf, symbols: SymbolTable, frames: CallFrames, dispatch_bh: int
) -> tuple[QmpSite, ...]:
    """What the code shows of them; other programs than QEMU's have none.

    ``command``: qmp_dispatch() looks the command up, its name is the second argument; where that
    is inlined (link-time optimisation), it asks whether the command may be used, by the fifth.
    ``begin``, ``end``: do_qmp_dispatch_bh() is entered and left (``dispatch_bh``, 0 if unknown).
    ``reply``: whoever called qmp_dispatch() sends its answer; the first argument is the monitor.
    """
    sites = []
    dispatch = symbols.address("qmp_dispatch")
    send = symbols.address("qmp_send_response")
    if dispatch is not None:
        for name, argument in TAKES_COMMAND.items():
            callee = symbols.address(name)
            calls = _calls(elf, frames, dispatch, callee) if callee is not None else []
            if calls:
                sites += [QmpSite("command", at, callee or 0, argument) for at in calls]
                break
        if send is not None:
            for caller, _end in callers_of(elf, frames, {dispatch}):
                sites += [QmpSite("reply", at, send) for at in _calls(elf, frames, caller, send)]
    if dispatch_bh:
        sites.append(QmpSite("begin", dispatch_bh))
        sites += [QmpSite("end", at) for at in find_exits(elf, frames, dispatch_bh)]
    for name, step in EVENTS.items():
        address = symbols.address(name)
        if address is not None:
            sites.append(QmpSite(step, address))
    return tuple(sites)


def _calls(elf: Elf, frames: CallFrames, start: int, callee: int) -> list[int]:
    """Addresses of the calls from one function to another."""
    extent = frames.function(start)
    if extent is None:
        return []
    return [at for at, target in Function(elf, *extent).calls().items() if target == callee]
