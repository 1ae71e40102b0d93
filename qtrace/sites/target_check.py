"""Whether one process can be recorded: found, readable, and its code as expected."""

from __future__ import annotations

from collections.abc import Iterator

from qtrace.errors import QtraceError
from qtrace.host.capabilities import ROOT, Check, Need
from qtrace.process.process import Process
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.watch import check_sites, plan_watch

STEPS = ("process", "executable", "symbols", "tracer", "bottom halves", "probe sites")
TARGET: tuple[Need, ...] = ("target",)


def check_target(pid: int) -> list[Check]:
    """One check per step of ``STEPS``; the first that is missing leaves the rest untried.

    Nothing of the process is changed.
    """
    checks: list[Check] = []
    try:
        for check in _steps(pid):
            checks.append(check)
    except (QtraceError, OSError) as error:
        message = error.message if isinstance(error, QtraceError) else str(error)
        remedy = error.remedy if isinstance(error, QtraceError) else ROOT
        checks.append(Check(STEPS[len(checks)], "missing", message, remedy, TARGET))
        checks += [
            Check(name, "untried", "needs what is missing above", needed_for=TARGET)
            for name in STEPS[len(checks) :]
        ]
    return checks


def _steps(pid: int) -> Iterator[Check]:
    """The checks of ``STEPS``; an error means that the next one is missing."""
    process = Process(pid)
    yield _ok("process", f"{pid}, {process.program}")
    module = process.binary
    deleted = " (deleted: read through /proc)" if process.deleted else ""
    yield _ok("executable", f"version {process.version or 'unknown'}, {process.exe_path}{deleted}")
    yield _ok("symbols", f"{len(module.symbols)} named functions; scan names static ones")
    yield _tracer(process)
    scan = scan_module(module)
    plan = plan_watch(scan, module)
    yield _ok("bottom halves", ", ".join(half.name for half in plan.watched))
    check_sites(plan, scan, module, process.memory)
    yield _ok("probe sites", f"{len(plan.sites)}, the running code is the file's")


def _tracer(process: Process) -> Check:
    """Only one may ptrace a process: gdb cannot attach beside another, eBPF can."""
    tracer = process.describe_tracer()
    if not tracer:
        return Check("tracer", "ok", "nobody else traces it", needed_for=("gdb",))
    detail = f"traced by {tracer}: gdb cannot attach, eBPF can"
    remedy = f"end it, or detach it: kill {process.tracer()}"
    return Check("tracer", "missing", detail, remedy, ("gdb",))


def _ok(name: str, detail: str) -> Check:
    return Check(name, "ok", detail, needed_for=TARGET)
