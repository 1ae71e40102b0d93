"""What gdb's own Python runs must be old enough for it, and need nothing besides."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 9)
# Arguments that came after 3.9: dataclass(slots=, kw_only=), zip(strict=).
TOO_NEW = {"slots", "kw_only", "strict"}


def reached() -> dict[str, Path]:
    """Every module that sourcing gdbscripts/aio.py imports, by name."""
    found: dict[str, Path] = {}
    work = ["qtrace.gdbscripts.aio"]
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


MODULES = reached()


def test_the_walkers_are_among_what_gdb_runs() -> None:
    assert {"qtrace.target.aio.walk", "qtrace.target.memory", "qtrace.gdbscripts.look"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_gdb_can_run_it(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(), feature_version=OLDEST)
    arguments = {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
    assert not arguments & TOO_NEW
    tops = {name.split(".")[0] for name in imports(MODULES[name])}
    assert tops - set(sys.stdlib_module_names) <= {"gdb", "qtrace"}
