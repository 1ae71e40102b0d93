"""Where names come from when .dynsym does not have them, on binaries built on the spot."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from qtrace.binary import symbols
from qtrace.binary.elf import Elf
from qtrace.binary.symbols import SymbolTable, load_symbols

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc"
)

SOURCE = """
static int __attribute__((noinline)) hidden_callback(int x) { return x * 3; }
int exported(int x) { return hidden_callback(x) + 1; }
"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A shared object with a static function and a build id."""
    source, target = tmp_path / "code.c", tmp_path / "code.so"
    source.write_text(SOURCE)
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", "-Wl,--build-id", "-o", target, source], check=True
    )
    return target


def strip(built: Path) -> Path:
    stripped = built.with_name("stripped.so")
    subprocess.run(["strip", "-o", stripped, built], check=True)
    return stripped


def test_a_stripped_file_names_only_what_it_exports(built: Path) -> None:
    table = load_symbols(Elf(strip(built)))
    address = table.address("exported")
    assert address is not None
    assert table.lookup(address + 1) == ("exported", 1)
    assert table.address("hidden_callback") is None


def test_symtab_names_static_functions(built: Path) -> None:
    assert load_symbols(Elf(built)).address("hidden_callback") is not None


def test_mini_debug_info_names_static_functions(built: Path, tmp_path: Path) -> None:
    packed = tmp_path / "debugdata.xz"
    packed.write_bytes(lzma.compress(built.read_bytes()))
    stripped = strip(built)
    subprocess.run(["objcopy", f"--add-section=.gnu_debugdata={packed}", stripped], check=True)
    table = load_symbols(Elf(stripped))
    assert table.address("hidden_callback") == load_symbols(Elf(built)).address("hidden_callback")


def test_a_separate_debug_file_is_found_by_build_id(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripped = strip(built)
    build_id = Elf(stripped).build_id
    folder = tmp_path / "debug"
    (folder / build_id[:2]).mkdir(parents=True)
    shutil.copy(built, folder / build_id[:2] / f"{build_id[2:]}.debug")
    monkeypatch.setattr(symbols, "DEBUG_FOLDER", folder)
    assert load_symbols(Elf(stripped)).address("hidden_callback") is not None


def test_broken_debug_data_is_no_error(built: Path, tmp_path: Path) -> None:
    packed = tmp_path / "debugdata.xz"
    packed.write_bytes(b"not xz")
    stripped = strip(built)
    subprocess.run(["objcopy", f"--add-section=.gnu_debugdata={packed}", stripped], check=True)
    assert load_symbols(Elf(stripped)).address("exported") is not None


def test_a_table_without_symbols_names_nothing() -> None:
    table = SymbolTable([])
    assert table.lookup(0x1000) is None
    assert table.address("main") is None
    assert len(table) == 0
