"""``--all`` on programs whose code does not show their event loop: refused, with the reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.symbols import load_symbols
from tests.live.support.attached import refused
from tests.live.support.benched import qtrace_run
from tests.live.support.counted import own_copy

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

NOP, RET = b"\x90", b"\xc3"


def damaged(program: Path, folder: Path, function: str, code: bytes) -> Path:
    """A copy in which a function begins with other code; nobody is to call it."""
    copy = own_copy(program, folder)
    elf = Elf(copy)
    address = load_symbols(elf).address(function)
    assert address is not None
    offset = elf.offset_of(address)
    assert offset is not None
    data = bytearray(copy.read_bytes())
    data[offset : offset + len(code)] = code
    # The mapping of the original stays as it was.
    copy.unlink()
    copy.write_bytes(data)
    copy.chmod(0o755)
    return copy


@pytest.mark.parametrize(
    ("function", "code", "reason"),
    [
        ("qemu_bh_schedule", RET + NOP * 27, "the atomic OR behind qemu_bh_schedule"),
        ("aio_bh_poll", RET + NOP * 511, "takes a QEMUBH off its list"),
    ],
)
def test_a_qemu_with_a_damaged_function_is_refused_before_it_runs(
    qemu_binary: Path, function: str, code: bytes, reason: str, tmp_path: Path
) -> None:
    program = damaged(qemu_binary.with_name("qemu-img"), tmp_path, function, code)
    status, report, err = qtrace_run(
        "--all", "-o", tmp_path / "t.csv", "--", program, "create", tmp_path / "disk", "1M"
    )
    assert (status, report) == (3, {}), err
    assert reason in err
    assert len(err.splitlines()) == 2
    assert not (tmp_path / "disk").exists()
    assert not (tmp_path / "t.csv").exists()


def test_a_process_that_is_no_qemu_is_refused() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        status, err = refused(process.pid, "--all")
        process.kill()
    assert status == 3
    assert "is not" in err
    assert "QEMU" in err
