"""``--all`` where the disk or the kernel does not go along."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest, find_qemu
from qtrace.trace.convert import convert
from qtrace.trace.reader import read_trace
from tests.live.support.attached import attach_command, refused

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]


def test_a_full_disk_leaves_what_was_recorded_readable(tmp_path: Path) -> None:
    command = bench_command(find_qemu("qemu-img"), disk_image(tmp_path), 100_003, "-n")
    # A third of what it takes: beside busy processes a recording may lose the other two thirds.
    with small_disk(tmp_path, "4M") as small:
        run = subprocess.run(
            [sys.executable, "-m", "qtrace", "run", "--all", "-o", str(small / "t.csv"),
             "--", *command], capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 3
        assert "No space left" in run.stderr
        assert "remedy:" in run.stderr
        assert "Traceback" not in run.stderr
        assert convert(small / "t.csv.raw", tmp_path / "t.csv").rows > 10_000


def test_the_reserve_of_free_disk_ends_a_recording_in_good_order(tmp_path: Path) -> None:
    # 64 MiB stay free, beside the room that turning the raw file into rows takes.
    with small_disk(tmp_path, "80M") as small, Guest(find_qemu()) as guest:
        trace = small / "t.parquet"
        run = subprocess.run(
            attach_command(guest.pid, "--all", "-o", trace), capture_output=True, text=True
        )
        assert run.returncode in (0, 1), run.stderr
        assert "the disk is almost full: the recording ends" in run.stderr
        assert json.loads(run.stdout)["complete"]
        read = read_trace(trace)
        assert read.detach["reason"] == "disk almost full"
        assert read.detach["all"]["written"] > 10_000
        assert list(small.iterdir()) == [trace]


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("no/such/folder/t.parquet", "no/such/folder does not exist"),
        ("folder.csv", "folder.csv"),
        ("t.txt", "t.txt is neither .csv nor .parquet"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_armed(
    place: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = refused(guest.pid, "--all", "-o", tmp_path / place)
    assert status in (2, 3), err
    assert "recording " not in err
    assert what in err


def test_a_kernel_without_ring_buffers_is_refused_with_the_remedy() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    # As Linux before 5.8: it knows no such map.
    older = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf",
             "-e", "inject=bpf:error=EINVAL"]  # fmt: skip
    with Guest(find_qemu(), firmware="idle") as guest:
        run = subprocess.run(
            [*older, *attach_command(guest.pid, "--all")], capture_output=True, text=True
        )
        assert guest.alive
    assert (run.returncode, run.stdout) == (3, "")
    assert "BPF ring buffer" in run.stderr
    assert "use a kernel of 5.8 or later" in run.stderr


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    place = folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
