"""What a recording is about to do with one binary: every site, found and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qtrace.binary.module import Module
from qtrace.process.process import Process
from qtrace.sites.all_plan import AllPlan, check_all_sites
from qtrace.sites.all_sites import plan_all
from qtrace.sites.cross_check import check_debug_info
from qtrace.sites.running_code import refuse_breakpoints
from qtrace.sites.scan import Scan
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.watch import check_sites, plan_watch
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
    scan = scan_module(module)
    watch = plan_watch(scan, module, patterns, optional=optional, everything=everything)
    every = None
    module.static_names = scan.static_names
    if everything:
        every = plan_all(module, imports_cancel)
        every = replace(every, notes=(*every.notes, *watch.notes))
        check_debug_info(module, every.layout, scan.context_variables)
    return Plans(scan, watch, every)
