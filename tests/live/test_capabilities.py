"""Recording with nothing to compile it and without root: four capabilities do, and of three the
missing one is named."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
from tests.live.support.filtered import killed_for_bpf, refused_maps
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
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        # It looks around in /proc meanwhile, and closes what it has read.
        with suppress(FileNotFoundError):
            if os.readlink(fd).startswith("anon_inode:bpf"):
                return True
    return False


def without_a_compiler() -> list[str]:
    """A mount namespace in which there is no bcc, and there are no kernel headers."""
    hidden = [SOURCES, MODULES]
    with suppress(RecorderUnavailable):
        hidden.append(find_bcc())
    mounts = [f"mount -t tmpfs none {folder}" for folder in hidden if folder.is_dir()]
    return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh"]


def two_lines(command: Sequence[str]) -> list[str]:
    """What is wrong and how to mend it, as a command says it that cannot do what it was told to."""
    run = subprocess.run(command, text=True, capture_output=True)
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    error, remedy = run.stderr.splitlines()
    assert error.startswith("error: ")
    assert remedy.startswith("remedy: ")
    return [error, remedy]


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
    error, remedy = two_lines([*with_only(*held), *own_cache, *command])
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


def test_a_filter_that_kills_for_bpf_is_told_and_kills_nobody(guest: Guest) -> None:
    command = attach_command(guest.pid, "--backend", "ebpf", "--duration", "1s")
    error, remedy = two_lines(killed_for_bpf(command))
    assert "a seccomp filter kills whoever calls bpf(2)" in error
    assert "leave the container" in remedy


def test_a_kernel_without_ring_buffers_is_told_which_one_has_them(guest: Guest) -> None:
    command = attach_command(guest.pid, "--backend", "ebpf", "--duration", "1s")
    error, remedy = two_lines(refused_maps(command, errno.EINVAL))
    assert error.startswith(f"error: BPF ring buffer: kernel {platform.release()}: Invalid")
    assert remedy == "remedy: use a kernel of 5.8 or later"


@pytest.mark.parametrize("command", ["attach", "inspect"])
def test_in_a_user_namespace_of_its_own_it_is_told_to_leave_that(
    guest: Guest, command: str
) -> None:
    inside = ["unshare", "--user", "--map-root-user", sys.executable, "-m", "qtrace", command]
    error, remedy = two_lines([*inside, "--pid", str(guest.pid)])
    assert error == f"error: not allowed to look into process {guest.pid}"
    assert remedy.startswith("remedy: run qtrace outside that namespace")


def of_other_sources(image: Path) -> None:
    header = image.with_name("event.h")
    header.write_text(header.read_text() + "/* another */\n")


def damaged(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-100])


SPOILT = pytest.mark.parametrize(
    ("spoil", "why"),
    [(of_other_sources, "are of other sources than probes/"), (damaged, "are damaged")],
)


def own_copy_with(spoil: Callable[[Path], None], folder: Path) -> list[str]:
    """A qtrace in a folder of its own, whose probes are spoilt."""
    for name in ("qtrace", "probes"):
        shutil.copytree(ROOT / name, folder / name, symlinks=False)
    spoil(folder / "probes/prebuilt.json")
    paths = f"PYTHONPATH={folder}:{os.environ.get('PYTHONPATH', '')}"
    return ["env", "--chdir=/", paths, f"XDG_CACHE_HOME={folder / 'cache'}"]


@pytest.mark.bcc
@SPOILT
def test_probes_that_cannot_be_used_are_compiled_instead_which_is_said_once(
    guest: Guest, tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    command = attach_command(guest.pid, "--backend", "ebpf", "--duration", "1s")
    run = subprocess.run(
        [*own_copy_with(spoil, tmp_path), *command], text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["verdict"] == "not-seen"
    said = [line for line in run.stderr.splitlines() if "prebuilt" in line]
    assert said == [f"warning: the prebuilt probes {why}: compiled instead"]


@SPOILT
def test_without_a_compiler_such_probes_are_an_error_with_its_remedy(
    guest: Guest, tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    command = attach_command(guest.pid, "--backend", "ebpf", "--duration", "1s")
    error, remedy = two_lines([*without_a_compiler(), *own_copy_with(spoil, tmp_path), *command])
    assert error.startswith(f"error: the prebuilt probes {why}, and ")
    assert remedy.startswith("remedy: install qtrace again, or apt-get install ")


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
    error, remedy = two_lines([*with_only(*FOUR), *own_cache, *without_links(command)])
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
