"""What a recording is about to do with one binary: every site, found and compared.

To find them takes a disassembler, numpy and tens of MB, which are needed for that moment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

from qtrace.binary.module import Module
from qtrace.host.forked import Forked
from qtrace.process.process import Process
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.recording_options import RecordingOptions
from qtrace.sites.all_plan import AllPlan, check_all_sites, modules_cancel
from qtrace.sites.running_code import refuse_breakpoints
from qtrace.sites.scan import Scan
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.watch_plan import WatchPlan


@dataclass(frozen=True, slots=True)
class Plans:
    """The sites of the watched bottom halves, and those of `--all` if there are."""

    scan: Scan
    watch: WatchPlan
    everything: AllPlan | None

    def check(self, process: Process) -> None:
        """Compare the running code with the file's.

        Raises:
            CodeMismatch
            TargetError: a debugger's breakpoint is at a site.
        """
        from qtrace.sites.watch import check_sites

        module = process.binary
        sites = [site.vaddr for site in self.watch.sites]
        check_sites(self.watch, self.scan, module, process.memory)
        if self.everything is not None:
            check_all_sites(self.everything, module, process.memory)
            sites += [site.vaddr for site in self.everything.sites]
        refuse_breakpoints(process, sites)


def make_plans(
    module: Module,
    patterns: Sequence[str],
    *,
    everything: bool,
    optional: bool,
    imports_cancel: bool = False,
) -> Plans:
    """Find the sites.

    Args:
        patterns: globs of bottom-half names, ``DEFAULT_WATCHED`` when empty.
        everything: of every bottom half, too.
        optional: there need be no bottom half that is watched by default.
        imports_cancel: a module of this QEMU calls qemu_bh_cancel() too.

    Raises:
        NotQemu, NoMatch
        ScanFailed: with the reason, where the code does not show what is needed or debug info
            says otherwise.
    """
    from qtrace.sites.watch import plan_watch

    scan = scan_module(module)
    watch = plan_watch(scan, module, patterns, optional=optional, everything=everything)
    every = None
    module.static_names = scan.static_names
    if everything:
        from qtrace.sites.all_sites import plan_all
        from qtrace.sites.cross_check import check_debug_info

        every = plan_all(module, imports_cancel)
        every = replace(every, notes=(*every.notes, *watch.notes))
        check_debug_info(module, every.layout, scan.context_variables)
    return Plans(scan, watch, every)


def search(
    process: Process,
    options: RecordingOptions,
    program: Future[Program] | None,
    *,
    runs: bool,
) -> Forked[Plans]:
    """Begin to find the sites in a process, and to compare them, in a process of its own.

    Args:
        program: the BPF program, when its loading was begun before; it is waited for.
        runs: else: it stands before its first instruction. No other code can be in it then, nor a
            loaded module, nor need there be a bottom half that is watched by default.

    Raises what ``Process.binary`` does; the result what ``make_plans`` and ``Plans.check`` do.
    """
    module, everything = process.binary, options.everything

    def find() -> Plans:
        plans = make_plans(
            module, options.patterns, everything=everything, optional=everything or not runs,
            imports_cancel=everything and runs and modules_cancel(process.space),
        )  # fmt: skip
        if runs:
            plans.check(process)
        return plans

    # What both need is made once.
    _ = module.symbols
    if everything:
        import numpy  # noqa: F401
    if program is not None:
        wait((program,))
    return Forked("find the places of the probes", find)
