"""What tests need of the host, and the QEMUs and accelerators they run on.

A test marked with one of ``NEEDS`` skips where the host lacks it, and says what enables it. Each
name in ``QTRACE_REQUIRE=bpf,bcc,gdb,qemu,kvm,fuse`` turns such skips into failures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase

from scripts.build_table import add_results
from scripts.soak_table import add_rows
from tests.builds import BUILDS, FOREIGN, QEMU, Build
from tests.left_behind import LeftBehind

ROOT = Path(__file__).resolve().parent.parent
NEEDS = (
    "bpf", "bcc", "gdb", "qemu", "kvm", "fuse", "node", "browser", "tmux", "cluster", "s3",
    "prometheus", "nspawn", "builds",
)  # fmt: skip
LIBRARIES = {"cluster": ("distributed",), "s3": ("s3fs", "moto")}
REQUIRED = frozenset(filter(None, os.environ.get("QTRACE_REQUIRE", "").split(",")))

# The two that all is shown on: the executable, with the command that brings it.
QEMUS = tuple(
    (str(build.starts / QEMU) if build.is_here else None, build.brings)
    for build in (BUILDS["installed"], BUILDS["backports"])
)
# One more for the live tests, if it is named: a program that takes QEMU's arguments and becomes
# QEMU, pid and working directory kept. It may be a script that enters a chroot.
OTHER_QEMU = os.environ.get("QTRACE_QEMU11", "")
if OTHER_QEMU:
    QEMUS += ((OTHER_QEMU, "export QTRACE_QEMU11=PATH"),)

# Above this many, guests and the probes in them get into each other's way more than they gain.
MOST_WORKERS = 8


def pytest_configure(config: pytest.Config) -> None:
    if unknown := REQUIRED - set(NEEDS):
        raise pytest.UsageError(f"QTRACE_REQUIRE names {sorted(unknown)}; known are {NEEDS}")
    # A shell starts what it runs in the background with Ctrl-C ignored, which children inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Scans and headers are cached, but not where the user's own are.
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache/tests")
    # Tests start qtrace hundreds of times: it need not be compiled anew each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Some QEMUs abort, as they are known to: a core only where a test asks for one.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    same_examples(config.option.markexpr != "soak")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LeftBehind(ROOT))


def same_examples(always: bool) -> None:
    """Hypothesis makes the same examples in each run, or others in each run of the soak.

    How long one takes decides nothing: others may want the processors.
    """
    database = DirectoryBasedExampleDatabase(ROOT / ".cache/tests/hypothesis")
    choice: dict[str, Any] = {"derandomize": True} if always else {"database": database}
    hypothesis.settings.register_profile("qtrace", deadline=None, **choice)
    hypothesis.settings.load_profile("qtrace")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each processor that we may use, and one more: live tests wait for a third of their
    time."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS)


@cache
def version(qemu: str) -> str:
    """The major and minor version, as in ``7.2``."""
    shown = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=60).stdout
    match = re.search(r"version (\d+\.\d+)", shown)
    return match[1] if match else "unknown"


# How tests' ids name each QEMU.
NAMES = [version(path) if path else how.replace(" ", "-") for path, how in QEMUS]
FIRST, SECOND = NAMES[:2]
OTHER = NAMES[2] if OTHER_QEMU else ""
# Of QEMU and accelerator `make test` takes the diagonal: each of the four once.
DIAGONAL = ({FIRST, "tcg"}, {SECOND, "kvm"})
# Whole files that stop guests and kill debuggers take too long for it: of these it shows each
# command once, `make soak` the rest.
SHOWN = {
    "test_steer.py":
        f"test_each_run_is_where_it_was_wanted_and_ebpf_judges_it_so[{FIRST}-tcg-vcpu]",
    "test_reroute.py": f"test_it_goes_into_the_other_context_and_no_vcpu_runs_it[{FIRST}-tcg]",
    "test_gdb_recorder.py":
        f"test_every_schedule_and_run_is_recorded_and_the_guest_hardly_paused[{FIRST}-tcg]",
    "test_lab_experiments.py": f"test_stranded_is_found_by_attach_and_by_inspect[{FIRST}-tcg]",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The rest of the matrix is `make soak`'s; what reads files knows the two QEMUs."""
    check_listed(config, items)
    if OTHER:
        named = re.compile(rf"\b{re.escape(OTHER)}\b")
        items[:] = [i for i in items if i.path.parent.name != "unit" or not named.search(i.name)]
    for item in items:
        case = re.search(r"\[(.*)\]", item.name)
        words = set(case[1].split("-")) if case else set()
        if item.path.name in SHOWN and item.path.parent.name == "live":
            shown = item.name == SHOWN[item.path.name]
        elif OTHER in words:
            shown = item.path.name == "test_other_qemu.py" and "kvm" not in words
        elif words & {FIRST, SECOND} and words & {"tcg", "kvm"}:
            shown = any(pair <= words for pair in DIAGONAL)
        else:
            shown = "kvm" not in words
        if not shown:
            item.add_marker(pytest.mark.soak)
    if hasattr(config, "workerinput"):
        # Whoever is done first shall find something short.
        items.sort(key=lambda item: item.path.parent.name == "unit")


def check_listed(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each id listed above is a test's: one that gets another name must not fall out unseen."""
    if any("::" in name for name in config.args) or config.getoption("lf", False):
        return
    there: dict[str, set[str]] = {}
    for item in items:
        there.setdefault(item.path.name, set()).add(item.name)
    for file, name in SHOWN.items():
        # Names end in numbers where both QEMUs are of one version.
        if not (ROOT / "tests/live" / file).exists() or (
            name not in there.get(file, {name}) and FIRST != SECOND
        ):
            raise pytest.UsageError(f"tests/conftest.py lists {file}::{name}, which is no test")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in NEEDS:
        if item.get_closest_marker(need) and (reason := missing(need)):
            absent(need, reason)


def absent(need: str, reason: str) -> None:
    """Skip the test, or fail where what it needs is required."""
    if need in REQUIRED:
        pytest.fail(f"required by QTRACE_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(f"{need}: {reason}")


def build(name: str) -> Build:
    """One of ``BUILDS`` or ``FOREIGN``. Skips the test where it is not here, or cannot start."""
    found = (BUILDS | FOREIGN)[name]
    if not found.is_here:
        absent("builds", f"the build '{name}' is not here: {found.brings}")
    if found.starts != found.files and os.geteuid():
        absent("builds", f"the build '{name}' starts in a root of its own: run as root")
    return found


@cache
def missing(need: str) -> str:
    """Why the host cannot run tests that need this; empty when it can."""
    if need == "qemu":
        return "" if QEMUS[0][0] else f"there is no QEMU: {QEMUS[0][1]}"
    if need == "builds":
        return ""  # which, is the test's to say: ``build``
    if need == "kvm":
        return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened"
    if need == "fuse":
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse cannot be opened"
        return "" if shutil.which("fusermount3") else "no fusermount3: apt-get install fuse3"
    if need == "node":
        if not shutil.which("node"):
            return "there is no Node: apt-get install nodejs"
        engine = ROOT / ".cache/perfetto/engine_bundle.js"
        return "" if engine.exists() else "no trace processor of Perfetto: tests/pictures/setup.sh"
    if need == "browser":
        return "" if shutil.which("chromium") else "no Chromium: apt-get install chromium"
    if need == "prometheus":
        there = (ROOT / ".cache/prometheus/usr/bin/prometheus").exists()
        return "" if there else "no Prometheus: tests/monitor/setup.sh"
    if need == "nspawn":
        places = (ROOT / ".cache/nspawn/usr/bin/systemd-nspawn", Path("/lib/systemd/systemd"))
        if os.geteuid():
            return "it boots a machine: run as root"
        there = all(place.exists() for place in places)
        return "" if there else "no systemd-nspawn, or no systemd: tests/monitor/setup.sh"
    if need in LIBRARIES:
        lacking = [name for name in LIBRARIES[need] if not importlib.util.find_spec(name)]
        return f"without {' and '.join(lacking)}: tests/fleet/setup.sh" if lacking else ""
    if need == "tmux":
        return "" if shutil.which("tmux") else "no tmux: apt-get install tmux"
    wanted = {"bpf": "ebpf", "bcc": "compile", "gdb": "gdb"}[need]
    for check in doctor()["checks"]:
        if wanted in check["needed_for"] and check["state"] != "ok":
            return f"{check['name']}: {check['detail']}: {check['remedy'] or 'qtrace doctor'}"
    return ""


@cache
def doctor() -> dict[str, Any]:
    """What ``qtrace doctor`` finds by really trying."""
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "doctor", "--format", "json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if not run.stdout:
        pytest.fail(f"qtrace doctor says nothing:\n{run.stderr}", pytrace=False)
    report: dict[str, Any] = json.loads(run.stdout)
    return report


@pytest.fixture(params=[pytest.param(q, id=name) for q, name in zip(QEMUS, NAMES, strict=True)])
def qemu_binary(request: pytest.FixtureRequest) -> Path:
    """Each QEMU's ``qemu-system-x86_64``; qemu-img and others lie beside it."""
    path, remedy = request.param
    if path is None:
        absent("qemu", f"this QEMU is not here: {remedy}")
    return Path(path)


@cache
def program_of(qemu: str) -> Path:
    """The executable that a script which starts QEMU leads to, from here: it may be in a chroot."""
    if Path(qemu).read_bytes()[:4] == b"\x7fELF":
        return Path(qemu)
    with subprocess.Popen([qemu, "-S", "-machine", "none", "-display", "none"]) as process:
        try:
            deadline = time.monotonic() + 30
            while not (path := Path(os.readlink(f"/proc/{process.pid}/exe"))).name.startswith(
                "qemu"
            ):
                assert time.monotonic() < deadline, f"{qemu} does not become QEMU"
                time.sleep(0.01)
            return path
        finally:
            process.kill()


@pytest.fixture(params=["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def accel(request: pytest.FixtureRequest) -> str:
    """Each accelerator, as ``-accel`` takes it."""
    return str(request.param)


SOAK_ROWS = pytest.StashKey[dict[tuple[str, str], str]]()
BUILD_CELLS = pytest.StashKey[dict[tuple[str, str, str], str]]()


def case_of(request: pytest.FixtureRequest) -> str:
    case = re.search(r"\[(.*)\]", request.node.name)
    return case[1] if case else ""


@pytest.fixture
def soak_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to docs/soak.md: what was counted, and the figures."""

    def add(what: str, *figures: object) -> None:
        rows = request.config.stash.setdefault(SOAK_ROWS, {})
        rows[what, case_of(request)] = "; ".join(map(str, figures))

    return add


@pytest.fixture
def works(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a cell to docs/builds.md, at a test's end: the command, and what was counted.

    The build and the accelerator are those that the test's id names.
    """

    def add(command: str, *figures: object) -> None:
        words = set(case_of(request).split("-"))
        (build,) = words & set(BUILDS)
        accelerator = "".join(words & {"tcg", "kvm"})
        cells = request.config.stash.setdefault(BUILD_CELLS, {})
        cells[command, accelerator, build] = "; ".join(map(str, figures))

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the tables of a soak run; what this run left out stays."""
    if session.config.option.markexpr not in ("soak", "soak or builds"):
        return
    if rows := session.config.stash.get(SOAK_ROWS, {}):
        add_rows(rows)
    if cells := session.config.stash.get(BUILD_CELLS, {}):
        add_results(cells)
