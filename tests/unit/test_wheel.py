"""The wheel alone, in an empty environment, gives the verdict of a trace."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qtrace.trace.schema import FORMAT, MAJOR, MINOR, Event
from qtrace.trace.writer import CsvWriter

ROOT = Path(__file__).resolve().parents[2]
CALLBACK, CTX, OPAQUE = 0x1000, 0x2000, 0x3000
NAME = "snapshot_save_job_bh"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"), "--wheel")


def build(folder: Path, kind: str) -> Path:
    """A wheel or a source distribution of this checkout."""
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(folder)]
    run = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = folder.iterdir()
    return built


def only_once(found: Iterable[object]) -> bool:
    return max(Counter(found).values()) == 1


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # A folder named by a .pth file does not have its own .pth files read: the editable
    # install of the clone stays outside.
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
         "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """One snapshot whose bottom half a vCPU thread ran inside aio_poll()."""
    detail = {
        "format": FORMAT,
        "version": [MAJOR, MINOR],
        "target": {"pid": 7, "version": "7.2.22", "build_id": "00"},
        "watched": [{"name": NAME}],
    }
    same: dict[str, Any] = {
        "name": NAME, "context": "main", "ctx": CTX, "callback": CALLBACK, "opaque": OPAQUE,
    }  # fmt: skip
    stack = ("start_thread", "cpu_exec", "blk_pwrite", "aio_poll", "aio_bh_poll", NAME)
    path = tmp_path / "trace.csv"
    with CsvWriter(path) as writer:
        writer.write(
            [
                Event(1, "attach", detail=detail),
                Event(2, "schedule", 7, "qemu", "main", **same),
                Event(3, "run", 8, "CPU 0/TCG", "vcpu", **same, stack=stack),
                Event(4, "detach"),
            ]
        )
    return path


def test_the_wheel_holds_the_linked_folders_as_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("analysis", "gdbscripts", "probes"):
        files = {
            f"qtrace/{folder}/{p.relative_to(ROOT / folder)}"
            for p in (ROOT / folder).rglob("*")
            if p.suffix in (".py", ".c", ".h", ".ipynb")
        }
        assert files
        assert files <= names
    assert {n for n in names if n.startswith("qtrace/lab/") and n.endswith(".bin")}


def test_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    assert "qtrace/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_neither_archive_holds_a_link_or_a_file_twice(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tmp_path, "--sdist")) as sdist:
        members = sdist.getmembers()
        assert {m.type for m in members} <= {tarfile.REGTYPE, tarfile.DIRTYPE}
        contents = [sdist.extractfile(m) for m in members if m.isfile()]
        texts = [file.read() for file in contents if file is not None]
        names = [m.name.partition("/")[2] for m in members]
    assert only_once(names)
    assert only_once(filter(None, texts))
    for held in ("qtrace/analysis/lint.py", "qtrace/gdbscripts/aio.py", "probes/watch.bpf.c"):
        assert held in names
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        assert not any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries)
        assert only_once(entry.filename for entry in entries)
        assert only_once(filter(None, (archive.read(entry) for entry in entries)))


def test_the_wheel_holds_nothing_outside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qtrace"}


def test_analyze_works_from_the_wheel_without_bcc_or_gdb(
    environment: Path, trace: Path, tmp_path: Path
) -> None:
    run = subprocess.run(
        [environment / "bin/qtrace", "analyze", str(trace), "--format", "json"],
        cwd=tmp_path, env={"PATH": "/nonexistent"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert json.loads(run.stdout)["verdict"] == "vcpu-poll"


@pytest.mark.gdb
def test_gdb_runs_the_commands_of_the_wheel(environment: Path, tmp_path: Path) -> None:
    """gdb's own Python has neither the environment nor its dependencies."""
    script = subprocess.run(
        [environment / "bin/qtrace", "gdb-script"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(script).is_relative_to(environment)
    run = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", f"source {script}", "-ex", "help aio", "-ex", "aio bh"],
        cwd=tmp_path, env={"PATH": os.defpath, "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "aio why -- " in run.stdout
    assert run.stderr.splitlines() == ["no process and no core: attach PID, or start gdb QEMU CORE"]


def test_the_environment_knows_neither_the_clone_nor_bcc(environment: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, qtrace.analysis as a, qtrace.cli.commands.analyze;"
        "print(u.find_spec('bcc') is None, a.__file__)"
    )
    run = subprocess.run(
        [environment / "bin/python", "-I", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    no_bcc, file = run.stdout.split()
    assert no_bcc == "True"
    assert Path(file).is_relative_to(environment)
