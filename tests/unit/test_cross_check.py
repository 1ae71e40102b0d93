"""What the code of a real QEMU shows, against debug info that agrees, and that does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qtrace.binary import symbols
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.errors import ScanFailed
from qtrace.record.plans import Plans, make_plans

pytestmark = pytest.mark.qemu

# As QEMU declares it since 0f08586c71 (6.1); at the place of qemu-img's own function and
# variable, so that this is its debug info for all that anybody can tell.
SOURCE = """
struct AioContext;
struct QEMUBH {
    struct AioContext *ctx;
    const char *name;
    void (*cb)(void *opaque);
    void *opaque;
    struct QEMUBH *next;
    MORE
    unsigned flags;
};
struct AioContext *qemu_aio_context __attribute__((section(".context")));
int aio_bh_poll(struct QEMUBH *bh) { return bh->flags; }
"""


@pytest.fixture
def stripped(qemu_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A QEMU program, and a folder for its debug info."""
    monkeypatch.setattr(symbols, "DEBUG_FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return qemu_binary.with_name("qemu-img")


def test_debug_info_that_agrees_lets_everything_be_recorded(stripped: Path, tmp_path: Path) -> None:
    without = planned(stripped)
    add_debug_info(stripped, tmp_path, context=without.scan.context_variables["main"])
    beside = planned(stripped)
    assert beside.scan == without.scan
    assert sites(beside) == sites(without)


def test_another_builds_structure_is_refused_by_member(stripped: Path, tmp_path: Path) -> None:
    context = planned(stripped).scan.context_variables["main"]
    add_debug_info(stripped, tmp_path, context=context, more="long more;")
    with pytest.raises(ScanFailed) as caught:
        planned(stripped)
    assert "bh_flags 0x28 by its code, 0x30 by its debug info" in caught.value.message
    assert "another build's" in caught.value.remedy


def test_another_builds_contexts_are_refused(stripped: Path, tmp_path: Path) -> None:
    context = planned(stripped).scan.context_variables["main"]
    add_debug_info(stripped, tmp_path, context=context + 64)
    with pytest.raises(ScanFailed, match=f"main_variable {context:#x} by its code"):
        planned(stripped)


def test_code_that_disagrees_with_itself_is_refused(stripped: Path, tmp_path: Path) -> None:
    # aio_bh_call() calls cb and passes opaque: now from elsewhere.
    module = Module(Elf(stripped), 0)
    address = module.symbols.address("aio_bh_call")
    assert address is not None
    code = bytearray(module.elf.read(address, 256))
    call = code.index(bytes.fromhex("ff5310"))
    data = bytearray(stripped.read_bytes())
    data[module.elf.offset_of(address) + call + 2] = 0x20
    changed = tmp_path / "qemu-img"
    changed.write_bytes(data)
    with pytest.raises(ScanFailed, match="disagree"):
        planned(changed)


def planned(program: Path) -> Plans:
    return make_plans(Module(Elf(program), 0), (), everything=True, optional=True)


def sites(plans: Plans) -> list[tuple[str, int]]:
    assert plans.everything is not None
    return [(site.kind, site.vaddr) for site in plans.everything.sites]


def add_debug_info(program: Path, folder: Path, *, context: int, more: str = "") -> None:
    """Put it where debug packages do, by build id."""
    elf = Elf(program)
    code = Module(elf, 0).symbols.address("aio_bh_poll")
    source, linked = folder / "debug.c", folder / "linked"
    source.write_text(SOURCE.replace("MORE", more))
    subprocess.run(
        ["gcc", "-g", "-O1", "-nostdlib", "-static", f"-Wl,--build-id=0x{elf.build_id}",
         "-Wl,-e,0", f"-Wl,-Ttext={code:#x}", f"-Wl,--section-start=.context={context:#x}",
         str(source), "-o", str(linked)], check=True,
    )  # fmt: skip
    debug = folder / elf.build_id[:2] / f"{elf.build_id[2:]}.debug"
    debug.parent.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", linked, debug], check=True)
