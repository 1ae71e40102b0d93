"""Which sites to probe for the watched bottom halves, and the check before arming."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import capstone

from qtrace.binary.dataflow import Function
from qtrace.binary.emulated import is_joined, past_guard
from qtrace.binary.instruction_set import InstructionSet, instruction_set
from qtrace.binary.module import Module
from qtrace.errors import NoMatch, ScanFailed
from qtrace.knowledge import SNAPSHOT_JOBS
from qtrace.machine.memory import Memory
from qtrace.sites.running_code import COMPARED, code_mismatch, runs_as_in_file
from qtrace.sites.scan import BottomHalf, Scan
from qtrace.sites.watch_plan import PLAIN_CALLS, Site, SiteKind, WatchPlan

# The snapshot jobs need the guest stopped (QEMU issue 2111).
DEFAULT_WATCHED = tuple(SNAPSHOT_JOBS)
# Beside `--all` so many get probes of their own, which copy whole stacks: of more the rows of
# `--all` tell as much, and none is lost.
MOST_BESIDE_ALL = 16


def plan_watch(
    scan: Scan,
    module: Module,
    patterns: Sequence[str] = (),
    *,
    optional: bool = False,
    everything: bool = False,
) -> WatchPlan:
    """Choose the bottom halves by glob patterns, ``DEFAULT_WATCHED`` when there are none.

    Args:
        optional: a program that has none of the default ones is fine.
        everything: `--all` records beside it. It has returns of its own, and every bottom half
            that a pattern means and that cannot be watched.

    Raises:
        NoMatch: a pattern matches nothing, or only what cannot be watched, without ``everything``.
        ScanFailed: nothing was asked for, and this program has none of the default ones.
    """
    chosen: dict[tuple[str, int], BottomHalf] = {}
    by_all: dict[str, str] = {}
    for pattern in patterns or DEFAULT_WATCHED:
        matches = [half for half in scan.bottom_halves if fnmatchcase(half.name, pattern)]
        usable = [half for half in matches if half.watchable]
        more = chosen | {(half.name, half.callback): half for half in usable}
        if patterns and not usable:
            why = _no_match(scan, pattern, bool(matches))
            if not everything:
                raise why
            by_all[pattern] = why.message
        elif everything and patterns and len(more) > MOST_BESIDE_ALL:
            by_all[pattern] = f"'{pattern}' means {len(usable)} one-shot bottom halves"
        else:
            chosen = more
    if not (chosen or by_all or optional):
        raise ScanFailed(
            f"{module.name} has none of {', '.join(DEFAULT_WATCHED)}",
            f"choose one with -b; qtrace scan lists those of a binary (here: {_some(scan)})",
        )
    watched = tuple(chosen.values())
    sites = []
    for half in watched:
        sites += [
            Site("schedule", half.name, site.address, callee=site.callee, fields=site.fields)
            for site in half.sites
        ]
        sites.append(_entry(module, "run", half.name, half.callback))
        exits = () if everything else half.exits
        sites += [Site("return", half.name, address, leaves=True) for address in exits]
    for name in PLAIN_CALLS:
        address = module.symbols.address(name)
        if address is not None:
            sites.append(_entry(module, "call", name, address))
    # Who asks for that bottom half too has it as a watched one: one site, one meaning.
    taken = {site.vaddr for site in sites}
    for found in scan.qmp:
        kind: SiteKind = "job" if found.step == "status" else "qmp"
        if found.callee or found.step == "end":
            site = Site(
                kind, found.step, found.address, found.callee,
                leaves=not found.callee, argument=found.argument,
            )  # fmt: skip
        else:
            site = _entry(module, kind, found.step, found.address)
        if site.vaddr not in taken:
            sites.append(site)
    notes = [f"{why}: the rows of --all tell what becomes of it" for why in by_all.values()]
    return WatchPlan(watched, tuple(sites), tuple(by_all), tuple(notes))


def _entry(module: Module, kind: SiteKind, name: str, function: int) -> Site:
    """A site at the start of a function: its first instruction that is no endbr64."""
    vaddr = past_guard(module.elf, function)
    extent = module.frames.function(function)
    if extent is None or is_joined(Function(module.elf, *extent), vaddr):
        vaddr = function
    return Site(kind, name, vaddr, past=vaddr - function)


def find_watchable(scan: Scan, pattern: str) -> BottomHalf:
    """The one bottom half that a name or glob means.

    Raises:
        NoMatch: it means none, several, or one that cannot be watched.
    """
    matches = [half for half in scan.bottom_halves if fnmatchcase(half.name, pattern)]
    usable = [half for half in matches if half.watchable]
    if not usable:
        raise _no_match(scan, pattern, bool(matches))
    if len(usable) > 1:
        raise NoMatch(
            f"'{pattern}' means {len(usable)} bottom halves: "
            f"{', '.join(half.name for half in usable[:5])}",
            "name one of them",
        )
    return usable[0]


def _no_match(scan: Scan, pattern: str, variable: bool) -> NoMatch:
    if variable:
        return NoMatch(
            f"'{pattern}' is scheduled with a callback that is a variable: it cannot be watched",
            "qtrace scan shows which bottom halves can",
        )
    names = sorted({half.name for half in scan.bottom_halves if half.watchable})
    near = difflib.get_close_matches(pattern.strip("*?"), names, n=3, cutoff=0.4) or names[:3]
    return NoMatch(
        f"no one-shot bottom half of this QEMU matches '{pattern}'",
        f"nearest: {', '.join(near)}; qtrace scan lists all {len(names)}",
    )


def _some(scan: Scan) -> str:
    return ", ".join(half.name for half in scan.bottom_halves if half.watchable)


def check_sites(plan: WatchPlan, scan: Scan, module: Module, memory: Memory) -> None:
    """Compare the running code with the file and with what each site must be.

    A probe in the wrong place can kill a VM: a call site must be a direct call or jump to
    its callee, the end of a function a return or a jump, all else the start of a function.

    Raises CodeMismatch.
    """
    code = instruction_set(module.elf)
    decoder = code.decoder()
    for site in plan.sites:
        same = runs_as_in_file(module, memory, site.vaddr)
        instruction = next(
            decoder.disasm(module.elf.read(site.vaddr, COMPARED), site.vaddr, 1), None
        )
        takes = instruction is not None and code.takes_probe(instruction)
        if not (same and takes and _is_expected(site, instruction, code, module)):
            says = "scan found" if same else "file says"
            raise code_mismatch(module, site.vaddr, site.label, says)


def _is_expected(
    site: Site, instruction: capstone.CsInsn, code: InstructionSet, module: Module
) -> bool:
    if site.callee:
        return code.target(instruction) == site.callee
    if site.leaves:
        return code.is_return(instruction) or code.always_jumps(instruction)
    function = module.frames.function(site.vaddr)
    return function is not None and function[0] == site.vaddr - site.past
