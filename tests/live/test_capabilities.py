"""Recording with nothing to compile it and without root: four capabilities do, and of three the
missing one is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qtrace.errors import RecorderUnavailable
from qtrace.lab.guest import Guest, find_qemu
from qtrace.record.ebpf.bcc_module import find_bcc
from qtrace.record.ebpf.kernel_headers import MODULES, SOURCES
from tests.conftest import ROOT
from tests.live.support.attached import (
    Attached,
    attach_command,
    attached,
    save,
    wait_for,
    watched_half,
)
from tests.live.support.older_kernel import without_links

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give capabilities: run as root"),
]

FOUR = ("bpf", "perfmon", "sys_ptrace", "dac_read_search")


def with_only(*names: str) -> list[str]:
    """Nobody's user and group, and these capabilities."""
    held = ",".join(f"+{name}" for name in names)
    given = [f"--inh-caps={held}", f"--ambient-caps={held}"] if names else []
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *given]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(find_qemu(), firmware="idle") as started:
        yield started


def for_anybody(command: list[str]) -> list[str]:
    """The same by a Python that every user may execute: the one that runs this may lie below a
    folder of root's own."""

    def is_open(path: Path) -> bool:
        return all(folder.stat().st_mode & 1 for folder in (path, *path.parents))

    if is_open(Path(sys.executable).resolve()):
        return command
    other = Path("/usr/bin/python3")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    asked = subprocess.run([other, "--version"], text=True, capture_output=True)
    if f"Python {version}." not in asked.stdout or not is_open(ROOT):
        pytest.skip("neither this Python nor the system's can be executed by every user")
    paths = f"PYTHONPATH={ROOT}:{sysconfig.get_path('purelib')}"
    return ["env", paths, str(other), *command[1:]]


def held(pid: int) -> set[int]:
    """What its threads may use, or may come to use, as masks of capabilities."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    sets = re.findall(r"^Cap(?:Inh|Prm|Eff|Amb):\t(\w+)", "\n".join(texts), re.MULTILINE)
    assert len(sets) == 4 * len(texts)
    return {int(mask, 16) for mask in sets}


def may_gain_some(pid: int) -> bool:
    """Whether a thread of it may execute a program that has more."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return not all("NoNewPrivs:\t1" in text for text in texts)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_bpf(pid: int) -> bool:
    return any(
        os.readlink(fd).startswith("anon_inode:bpf") for fd in Path(f"/proc/{pid}/fd").iterdir()
    )


def without_a_compiler() -> list[str]:
    """A mount namespace in which there is no bcc, and there are no kernel headers."""
    hidden = [SOURCES, MODULES]
    with suppress(RecorderUnavailable):
        hidden.append(find_bcc())
    mounts = [f"mount -t tmpfs none {folder}" for folder in hidden if folder.is_dir()]
    return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh"]


@pytest.fixture
def own_cache(tmp_path: Path) -> list[str]:
    """A place that nobody may write to."""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    return ["env", f"XDG_CACHE_HOME={tmp_path}", "PYTHONDONTWRITEBYTECODE=1"]


def test_nothing_is_compiled_and_four_capabilities_record_every_schedule_and_run(
    guest: Guest, own_cache: list[str]
) -> None:
    prefix = [*without_a_compiler(), *with_only(*FOUR), *own_cache]
    process = subprocess.Popen(
        [*prefix, *for_anybody(attach_command(guest.pid))], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "by eBPF" in line, line + process.stderr.read()
        wait_for(lambda: held(process.pid) == {0})
        (child,) = children(process.pid)
        # CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE, of which nobody inherits any.
        wait_for(lambda: held(child) == {1 << 2 | 1 << 19, 0})
        assert not has_bpf(child)
        assert not may_gain_some(process.pid)
        assert not may_gain_some(child)
        save(guest, 7)
        status, report, err = Attached(process, line).end()
    finally:
        process.kill()
        process.communicate()
    assert (status, err) == (0, "")
    assert watched_half(report)["verdicts"] == {"main-loop": 7}
    doctor = for_anybody([sys.executable, "-m", "qtrace", "doctor", "--format", "json"])
    run = subprocess.run([*prefix, *doctor], text=True, stdout=subprocess.PIPE)
    states = {check["name"]: check["state"] for check in json.loads(run.stdout)["checks"]}
    assert [states[name] for name in ("BPF programs", "uprobe program")] == ["ok", "ok"]
    assert states["bcc"] == "missing"
    assert run.returncode == 0


def test_without_looks_nothing_stays(guest: Guest) -> None:
    with attached(guest.pid, "--no-looks") as attach:
        wait_for(lambda: held(attach.process.pid) == {0})
        assert children(attach.process.pid) == []
        save(guest, 7)
        status, report, err = attach.end()
    assert (status, err) == (0, "")
    assert watched_half(report)["verdicts"] == {"main-loop": 7}


def test_when_who_looks_has_died_the_recording_goes_on_and_says_so(guest: Guest) -> None:
    with attached(guest.pid) as attach:
        save(guest, 1)
        (child,) = children(attach.process.pid)
        os.kill(child, signal.SIGKILL)
        save(guest, 6)
        status, report, err = attach.end()
    assert (status, watched_half(report)["verdicts"]) == (0, {"main-loop": 7})
    assert "nobody looks at the target any more" in err


@pytest.mark.parametrize(
    ("missing", "backend"),
    [*((name, "auto") for name in FOUR), ("", "auto"), ("bpf", "ebpf")],
    ids=[*FOUR, "all", "bpf for ebpf"],
)
def test_without_one_of_them_it_is_named(
    guest: Guest, own_cache: list[str], missing: str, backend: str
) -> None:
    held = [name for name in FOUR if missing and name != missing]
    command = for_anybody(attach_command(guest.pid, "--backend", backend, "--duration", "1s"))
    run = subprocess.run([*with_only(*held), *own_cache, *command], text=True, capture_output=True)
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    error, remedy = run.stderr.splitlines()
    assert error.startswith("error: ")
    assert remedy.startswith("remedy: ")
    assert f"CAP_{(missing or 'sys_ptrace').upper()}" in error + remedy


def test_capabilities_of_a_user_namespace_are_told_from_those_that_count() -> None:
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-m", "qtrace", "doctor"],
        text=True, capture_output=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("CAP_BPF ")]
    assert "missing" in line
    assert "held in a user namespace of its own only" in line
    assert "run qtrace outside that namespace" in run.stdout
    assert run.returncode == 3


# Ends whoever calls bpf(2), number 321 (linux/seccomp.h, linux/bpf_common.h), then becomes argv.
DEADLY = """
import ctypes, os, struct, sys
code = struct.pack("<HBBI", 0x20, 0, 0, 0)           # load seccomp_data.nr
code += struct.pack("<HBBI", 0x15, 0, 1, 321)        # not bpf: skip one
code += struct.pack("<HBBI", 0x06, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS
code += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)  # SECCOMP_RET_ALLOW
instructions = ctypes.create_string_buffer(code)
program = struct.pack("<HxxxxxxQ", 4, ctypes.addressof(instructions))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
    sys.exit("no filter")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_filter_that_kills_for_bpf_is_told_and_kills_nobody(guest: Guest) -> None:
    command = attach_command(guest.pid, "--backend", "ebpf", "--duration", "1s")
    run = subprocess.run(
        [sys.executable, "-c", DEADLY, *command[1:]], text=True, capture_output=True
    )
    assert run.returncode == 3, run.stderr
    error, remedy = run.stderr.splitlines()
    assert "a seccomp filter kills whoever calls bpf(2)" in error
    assert "leave the container" in remedy


def test_on_an_older_kernel_the_price_is_told_before_the_probes_are_set(guest: Guest) -> None:
    process = subprocess.Popen(
        without_links(attach_command(guest.pid)), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        price, line = process.stderr.readline(), process.stderr.readline()
        assert "perf event for each probe" in price
        assert "by eBPF" in line
        save(guest, 7)
        status, report, _err = Attached(process, line).end()
    finally:
        process.kill()
        process.communicate()
    assert (status, watched_half(report)["verdicts"]) == (0, {"main-loop": 7})


def test_an_older_kernel_asks_for_another_capability(guest: Guest, own_cache: list[str]) -> None:
    command = attach_command(guest.pid, "--duration", "1s")
    run = subprocess.run(
        [*with_only(*FOUR), *own_cache, *without_links(command)], text=True, capture_output=True
    )
    assert (run.returncode, run.stdout) == (3, "")
    error, remedy = run.stderr.splitlines()
    assert "CAP_SYS_ADMIN: not held: set uprobes, as there are no links for them" in error
    assert "CAP_SYS_ADMIN" in remedy


def test_code_in_a_folder_that_is_closed_to_it_can_still_be_imported(
    guest: Guest, own_cache: list[str], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    # What judges the trace is imported when the recording has ended.
    shutil.copytree(ROOT / "qtrace", closed / "qtrace", symlinks=False)
    shutil.copytree(ROOT / "probes", closed / "probes")
    command = attach_command(guest.pid, "--duration", "1s")
    run = subprocess.run(
        [*with_only(*FOUR), *own_cache, f"PYTHONPATH={closed}:{os.environ.get('PYTHONPATH', '')}",
         *command], text=True, capture_output=True, cwd="/",
    )  # fmt: skip
    assert (run.returncode, json.loads(run.stdout)["verdict"]) == (0, "not-seen"), run.stderr
