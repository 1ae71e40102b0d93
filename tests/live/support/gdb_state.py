"""Run by gdb: what a command must leave as it is, and what the scripts found."""

import hashlib
import re

import gdb

_before = {}


def _state():
    """Registers of all threads, every mapping's bytes that can change, what is selected."""
    selected = gdb.selected_thread(), gdb.selected_frame()
    pid = gdb.selected_inferior().pid
    found = {
        "registers": gdb.execute("thread apply all info registers", to_string=True),
        "threads": [(t.num, t.is_stopped()) for t in gdb.selected_inferior().threads()],
        "selected": (selected[0].num, selected[1].level(), selected[1].pc()),
        "breakpoints": gdb.execute("info breakpoints", to_string=True),
        "settings": [
            gdb.parameter(name)
            for name in ("trust-readonly-sections", "disassembly-flavor", "may-call-functions")
        ],
    }
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            match = re.match(r"(\w+)-(\w+) (rw|r-x|rwx)", line)
            if match is None or "[v" in line:
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            memory.seek(start)
            try:
                found[line] = hashlib.sha1(memory.read(end - start)).digest()
            except OSError:
                found[line] = None
    return found


def remember():
    _before.update(_state())


def check(name):
    """Print whether everything is as it was remembered."""
    now = _state()
    changed = [key for key in _before if now.get(key) != _before[key]]
    print(f"{name} CHANGED {changed}" if changed else f"{name} unchanged")


def sites():
    """The calls that schedule, as link-time addresses."""
    from qtrace.gdbscripts.breakpoints import _sites
    from qtrace.gdbscripts.gdb_target import GdbProgram

    # The first section of a position-independent executable lies in its first page.
    base = min(start for start, _end in GdbProgram().sections().values()) & -4096
    for site in _sites().sites:
        if site.schedules:
            callback = site.callback - base if site.callback else 0
            print(f"{site.address - base:#x} {site.name} {callback:#x}")
