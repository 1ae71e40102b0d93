"""A core whose libraries are not here, or other builds: they are named, and none is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import Qemu
from qtrace.process.core_file import CoreFile, FilePart
from qtrace.process.core_source import CoreSource
from qtrace.qemu.aio.findings import explain
from qtrace.qemu.aio.inconclusive import unclear_in_core
from qtrace.qemu.aio.model import Look
from tests.live.support.gdb_cases import Hung

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

LIBC = "libc.so.6"


class ForeignCore(CoreFile):
    """A core of a machine that had its C library elsewhere; perhaps without its first page."""

    def __init__(self, path: Path, elsewhere: str = "", *, headless: bool = False) -> None:
        super().__init__(path)
        self._elsewhere = elsewhere
        self._headless = headless

    @cached_property
    def files(self) -> list[FilePart]:
        parts = CoreFile.files.func(self)  # type: ignore[attr-defined]
        self.headers = {p.start for p in parts if Path(p.path).name == LIBC and not p.offset}
        return [
            replace(p, path=self._elsewhere or p.path) if Path(p.path).name == LIBC else p
            for p in parts
        ]

    def read(self, address: int, size: int) -> bytes:
        if self._headless and any(start <= address < start + 4096 for start in self.headers):
            return b""
        return super().read(address, size)


@pytest.fixture
def core(hung: Hung) -> Path:
    return Path(hung.any("core").arguments[1])


def look(core: CoreFile, sysroot: Path | None = None) -> Look:
    return Looker(Qemu(CoreSource(core, sysroot=sysroot))).look()


def libc_of(core: Path) -> str:
    return next(part.path for part in CoreFile(core).files if Path(part.path).name == LIBC)


def check_not_used(found: Look, told: str) -> None:
    assert found.absent == (told,)
    assert explain(found) == []
    (reason, *others) = unclear_in_core(found)
    assert reason == f"stacks lead through code that is not here: {told}"
    main = next(t for t in found.threads if t.role == "main")
    assert f"the stack of {main.label} breaks off" in others
    assert main.blocked_in == "ppoll"
    assert len(main.frames) == 1
    assert main.frames[0].startswith(f"{LIBC}@0x")


def test_one_that_is_not_here_is_named(core: Path) -> None:
    elsewhere = f"/nonexistent/{LIBC}"
    check_not_used(look(ForeignCore(core, elsewhere)), f"{elsewhere} is not here")


def test_another_build_is_not_used(core: Path, tmp_path: Path) -> None:
    other = tmp_path / LIBC
    other.write_bytes(with_another_build_id(Path(libc_of(core)).read_bytes()))
    check_not_used(look(ForeignCore(core, str(other))), f"{other} is another build here")


def with_another_build_id(library: bytes) -> bytes:
    at = library.index(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0") + 16
    return library[:at] + bytes(20) + library[at + 20 :]


def plain(root: Path, libc: Path) -> None:
    (root / "far/away").mkdir(parents=True)
    shutil.copy(libc, root / f"far/away/{LIBC}")


def linked(root: Path, libc: Path) -> None:
    """As in a chroot, whose absolute links mean its own root."""
    (root / "real").mkdir()
    shutil.copy(libc, root / f"real/{LIBC}-1")
    (root / f"real/{LIBC}").symlink_to(f"{LIBC}-1")
    (root / "far").mkdir()
    (root / "far/away").symlink_to("/real")


@pytest.mark.parametrize("laid", [plain, linked])
def test_below_its_sysroot_it_is_found(
    core: Path, tmp_path: Path, laid: Callable[[Path, Path], None]
) -> None:
    laid(tmp_path, Path(libc_of(core)).resolve())
    found = look(ForeignCore(core, f"/far/away/{LIBC}"), tmp_path)
    whole = look(CoreFile(core))
    assert [f.sentence for f in explain(found)] == [f.sentence for f in explain(whole)] != []
    assert found.absent == ()


def test_one_that_nothing_tells_from_another_leaves_it_open(core: Path) -> None:
    found = look(ForeignCore(core, headless=True))
    (told,) = found.absent
    assert told.startswith("whether /")
    assert told.endswith(f"/{LIBC} is what was mapped cannot be told")
    # What is found is shown, but not that there is nothing else.
    assert explain(found)
    assert unclear_in_core(found)
