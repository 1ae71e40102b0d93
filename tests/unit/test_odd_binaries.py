"""Programs of QEMU that lack what others have, or claim to be what they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.process.maps import Module
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.scanner import scan_binary
from tests import stripped

pytestmark = pytest.mark.qemu


@pytest.fixture
def program(qemu_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A scan is known again by the code, which is the same here.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return qemu_binary.with_name("qemu-img")


def test_one_that_exports_nothing_is_scanned_by_the_names_in_its_code(
    program: Path, tmp_path: Path
) -> None:
    copy = Module(Elf(stripped.without_exports(program, tmp_path / "qemu-img")), 0)
    assert copy.symbols.address("aio_bh_poll") is None
    known, blind = scan_binary(Module(Elf(program), 0), ""), scan_binary(copy, "")
    assert (known.found_by, blind.found_by) == ("symbol", "names")
    assert [(h.name, h.callback) for h in blind.bottom_halves] == [
        (h.name, h.callback) for h in known.bottom_halves
    ]


def test_one_without_any_name_is_refused_as_the_qemu_that_it_is(
    program: Path, tmp_path: Path
) -> None:
    copy = stripped.without_names(program, tmp_path / "qemu-img")
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "scan", str(copy)], capture_output=True, text=True
    )
    assert run.returncode == 3
    error, remedy = run.stderr.splitlines()
    assert error.startswith("error: qemu-img is a QEMU program")
    assert "neither symbols nor names" in error
    assert remedy.startswith("remedy: install its debug symbols")


def test_one_that_claims_anothers_build_id_has_a_scan_of_its_own(
    program: Path, tmp_path: Path
) -> None:
    other = Elf(program.with_name("qemu-nbd"))
    theirs = scan_module(Module(other, 0))
    copy = Elf(stripped.with_build_id(program, other.build_id, tmp_path / "qemu-img"))
    assert copy.build_id == other.build_id
    ours = scan_module(Module(copy, 0))
    assert ours.bottom_halves == scan_module(Module(Elf(program), 0)).bottom_halves
    assert ours.bottom_halves != theirs.bottom_halves
