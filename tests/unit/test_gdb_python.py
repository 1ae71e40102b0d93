"""What gdb's own Python and the watchdog run: old enough for gdb's, and nothing besides."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 9)
# Arguments that came after 3.9: dataclass(slots=, kw_only=), zip(strict=).
TOO_NEW = {"slots", "kw_only", "strict"}
# aio.py, which a user sources, with its parts; what sessions of ours import.
SCRIPTS = [
    f"{package}.{path.stem}"
    for package in ("qtrace.gdbscripts", "qtrace.gdb.inside")
    for path in (ROOT / "qtrace" / package.partition(".")[2].replace(".", "/")).glob("*.py")
    if path.stem != "__init__"
]
# A process of its own: qtrace's Python, without its environment and its packages.
WATCHDOG = "qtrace.gdb.safety.watchdog"


def reached(*starts: str) -> dict[str, Path]:
    """Every module that importing these imports, by name."""
    found: dict[str, Path] = {}
    work = list(starts)
    while work:
        name = work.pop()
        path = ROOT / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not file.exists():
            continue
        found[name] = file
        work += [".".join(name.split(".")[: n + 1]) for n in range(name.count("."))]
        work += imports(file)
    return found


def imports(file: Path) -> list[str]:
    """The modules that a file imports, wherever it does."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def foreign(file: Path) -> set[str]:
    """What a file imports beside the standard library and qtrace."""
    return {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names) - {
        "qtrace"
    }  # fmt: skip


GDB_RUNS, WATCHDOG_RUNS = reached(*SCRIPTS), reached(WATCHDOG)


def test_the_walkers_and_the_scripts_of_sessions_are_among_what_gdb_runs() -> None:
    assert {
        "qtrace.qemu.aio.walk", "qtrace.machine.memory", "qtrace.gdbscripts.gdb_look",
        "qtrace.gdb.safety.lifeline", "qtrace.machine.ptrace",
        *(f"qtrace.gdb.inside.{name}" for name in (
            "record_hits", "steering", "stranding", "stops", "rerouting", "pass_over")),
    } <= set(GDB_RUNS)  # fmt: skip


def test_the_rescue_is_among_what_the_watchdog_runs() -> None:
    names = ("watchdog", "rescue", "trap_action", "priority", "lifeline")
    safety = {f"qtrace.gdb.safety.{name}" for name in names}
    assert {*safety, "qtrace.machine.ptrace"} <= set(WATCHDOG_RUNS)


@pytest.mark.parametrize("name", sorted(GDB_RUNS))
def test_gdb_can_run_it(name: str) -> None:
    tree = ast.parse(GDB_RUNS[name].read_text(), feature_version=OLDEST)
    arguments = {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
    assert not arguments & TOO_NEW
    assert foreign(GDB_RUNS[name]) <= {"gdb"}


@pytest.mark.parametrize("name", sorted(WATCHDOG_RUNS))
def test_the_watchdog_can_run_it(name: str) -> None:
    assert foreign(WATCHDOG_RUNS[name]) == set()


@pytest.mark.gdb
def test_gdb_imports_each_script_of_a_session() -> None:
    """Really, as ``qtrace.gdb.gdb_session`` does; aio.py is sourced, and registers its commands."""
    names = sorted(set(SCRIPTS) - {"qtrace.gdbscripts.aio"})
    code = f"import sys; sys.path.append({str(ROOT)!r}); import {', '.join(names)}; print('done')"
    run = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", f"python {code}"],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (run.stdout, run.stderr) == ("done\n", "")


def test_the_watchdogs_python_imports_it() -> None:
    """Really, as ``qtrace.gdb.safety.guard`` does: no environment, no site-packages."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); import {WATCHDOG}; print('done')"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("done\n", "")
