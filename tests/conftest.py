"""What tests need of the host, and the QEMUs and accelerators they run on.

A test marked ``bpf``, ``gdb`` or ``qemu`` skips where the host lacks it, and says what
enables it. Each name in ``QTRACE_REQUIRE=bpf,gdb,qemu,kvm`` turns such skips into failures.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDS = ("bpf", "gdb", "qemu", "kvm")
REQUIRED = frozenset(filter(None, os.environ.get("QTRACE_REQUIRE", "").split(",")))

BACKPORTS = ROOT / ".cache/qemu-backports/usr/bin/qemu-system-x86_64"
# The executable of each QEMU that tests run on, with the command that brings it.
QEMUS = (
    (shutil.which("qemu-system-x86_64"), "apt-get install qemu-system-x86 qemu-utils"),
    (str(BACKPORTS) if BACKPORTS.exists() else None, "make qemus"),
)


def pytest_configure(config: pytest.Config) -> None:
    if unknown := REQUIRED - set(NEEDS):
        raise pytest.UsageError(f"QTRACE_REQUIRE names {sorted(unknown)}; known are {NEEDS}")
    # A shell starts what it runs in the background with Ctrl-C ignored, which children inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Scans and headers are cached, but not where the user's own are.
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache/tests")


# Of QEMU and accelerator `make test` takes the diagonal: each of the four once.
DIAGONAL = ({"7.2", "tcg"}, {"10.0", "kvm"})
# Whole files that stop guests and kill debuggers take too long for it: of these it shows each
# command once, `make soak` the rest.
LONG = ("test_gdb_recorder", "test_steer", "test_reroute", "test_lab_experiments")
SHOWN = (
    "test_each_run_is_where_it_was_wanted_and_ebpf_judges_it_so[7.2-tcg-vcpu]",
    "test_it_goes_into_the_other_context_and_no_vcpu_runs_it[7.2-tcg]",
    "test_every_schedule_and_run_is_recorded_and_the_guest_hardly_paused[7.2-tcg]",
    "test_stranded_is_found_by_attach_and_by_inspect[7.2-tcg]",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The rest of the matrix is `make soak`'s."""
    for item in items:
        case = re.search(r"\[(.*)\]", item.name)
        words = set(case[1].split("-")) if case else set()
        if item.path.name.startswith(LONG) and item.path.parent.name == "live":
            shown = item.name in SHOWN
        elif words & {"7.2", "10.0"} and words & {"tcg", "kvm"}:
            shown = any(pair <= words for pair in DIAGONAL)
        else:
            shown = "kvm" not in words
        if not shown:
            item.add_marker(pytest.mark.soak)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in NEEDS:
        if item.get_closest_marker(need) and (reason := missing(need)):
            absent(need, reason)


def absent(need: str, reason: str) -> None:
    """Skip the test, or fail where what it needs is required."""
    if need in REQUIRED:
        pytest.fail(f"required by QTRACE_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(f"{need}: {reason}")


@cache
def missing(need: str) -> str:
    """Why the host cannot run tests that need this; empty when it can."""
    if need == "qemu":
        return "" if QEMUS[0][0] else f"there is no QEMU: {QEMUS[0][1]}"
    if need == "kvm":
        return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened"
    wanted = {"bpf": "ebpf", "gdb": "gdb"}[need]
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


def version(qemu: str) -> str:
    """The major and minor version, as in ``7.2``."""
    shown = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=60).stdout
    match = re.search(r"version (\d+\.\d+)", shown)
    return match[1] if match else "unknown"


@pytest.fixture(
    params=[pytest.param(q, id=version(q[0]) if q[0] else q[1].replace(" ", "-")) for q in QEMUS]
)
def qemu_binary(request: pytest.FixtureRequest) -> Path:
    """Each QEMU's ``qemu-system-x86_64``; qemu-img and others lie beside it."""
    path, remedy = request.param
    if path is None:
        absent("qemu", f"this QEMU is not here: {remedy}")
    return Path(path)


@pytest.fixture(params=["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def accel(request: pytest.FixtureRequest) -> str:
    """Each accelerator, as ``-accel`` takes it."""
    return str(request.param)


SOAK_ROWS = pytest.StashKey[list[tuple[str, ...]]]()
SOAK_TABLE = ROOT / "docs/soak.md"
# Its lines before the first row.
TABLE_STARTS = 7


@pytest.fixture
def soak_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to docs/soak.md: what was counted, and the figures."""

    def add(what: str, *figures: object) -> None:
        case = re.search(r"\[(.*)\]", request.node.name)
        row = (what, case[1] if case else "", *map(str, figures))
        request.config.stash.setdefault(SOAK_ROWS, []).append(row)

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table of a soak run; rows of counts that this run left out stay."""
    rows = session.config.stash.get(SOAK_ROWS, [])
    if not rows:
        return
    table = {row[:2]: "; ".join(row[2:]) for row in rows}
    if SOAK_TABLE.exists():
        for line in SOAK_TABLE.read_text().splitlines()[TABLE_STARTS:]:
            what, case, result = (cell.strip() for cell in line.strip("|").split("|"))
            table.setdefault((what, case), result)
    SOAK_TABLE.write_text(
        "# What `make soak` counted\n\n"
        "The whole matrix and the large counts, on real QEMUs; the run itself writes the table.\n"
        f"Kernel {platform.release().partition('-')[0]}, {os.cpu_count()} CPUs.\n\n"
        "| what | case | result |\n|---|---|---|\n"
        + "".join(f"| {what} | {case} | {table[what, case]} |\n" for what, case in sorted(table))
    )
