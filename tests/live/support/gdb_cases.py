"""What the tests of the gdb commands share: where they run, and QEMUs that hang."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest
from tests.conftest import QEMUS, version
from tests.live.support.gdb_session import Target, core_of, live
from tests.live.support.hung import hung_guest

SAVE = "snapshot_save_job_bh"
STRANDED = "co_schedule_bh_cb"
CONTEXTS = ["main", "iohandler", "iothread:iot0", "iothread:mon_iothread"]
COMMANDS = (
    "contexts", "bh", "handlers", "threads", "jobs", "nodes", "requests", "coroutines", "why",
)  # fmt: skip


def _combination(number: int, accel: str, soak: bool) -> object:
    binary = QEMUS[number][0]
    name = f"{version(binary) if binary else f'qemu{number}'}-{accel}"
    marks = [pytest.mark.soak] if soak else []
    if accel == "kvm":
        marks.append(pytest.mark.kvm)
    return pytest.param(QEMUS[number], accel, id=name, marks=marks)


# Each QEMU and each accelerator once; all of them in the soak.
everywhere = pytest.mark.parametrize(
    ("qemu_binary", "accel"),
    [_combination(0, "tcg", False), _combination(1, "kvm", False),
     _combination(0, "kvm", True), _combination(1, "tcg", True)],
    indirect=True,
)  # fmt: skip

# The same, but each is dear and shows little that another does not: one of them will do.
once = pytest.mark.parametrize(
    ("qemu_binary", "accel"),
    [_combination(number, accel, (number, accel) != (0, "tcg"))
     for number in (0, 1) for accel in ("tcg", "kvm")],
    indirect=True,
)  # fmt: skip


class Hung:
    """The hung QEMU of each kind, and a core of it, made when first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._made: dict[tuple[Path, str], dict[str, Target]] = {}

    def __call__(self, qemu: Path, accel: Accelerator, kind: str) -> Target:
        """``kind`` is ``live`` or ``core``."""
        if (qemu, accel) not in self._made:
            guest = self._stack.enter_context(hung_guest(qemu, accel))
            # Not tmp_path: pytest keeps that, and cores are large.
            folder = tempfile.TemporaryDirectory(prefix="qtrace-core-")
            core = core_of(guest.pid, qemu, Path(self._stack.enter_context(folder)))
            self._made[qemu, accel] = {"live": live(guest.pid, qemu), "core": core}
        return self._made[qemu, accel][kind]

    def any(self, kind: str) -> Target:
        """One of them, where it does not matter which."""
        return self(Path(QEMUS[0][0] or ""), "tcg", kind)


@contextmanager
def save_begun(guest: Guest) -> Iterator[None]:
    """Ask for a snapshot that fails at its first check, without waiting for the answer."""
    arguments = {"job-id": "save", "tag": "x", "vmstate": "nosuch", "devices": ["nosuch"]}
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"}')
        qmp.sendall(json.dumps({"execute": "snapshot-save", "arguments": arguments}).encode())
        yield


def columns(printed: str) -> list[list[str]]:
    """The rows of a table without its titles; columns are two spaces or more apart."""
    return [re.split(r"\s{2,}", line) for line in printed.splitlines()[1:]]
