"""``qtrace inspect`` as tests run it, and what it must say of the hung QEMU."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.limits import TIMEOUT_S
from tests.live.support.gdb_cases import STRANDED
from tests.live.support.hung import JOB


def inspect(*options: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, JSON and stderr."""
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "inspect", *map(str, options), "--format", "json"],
        text=True, capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, json.loads(run.stdout) if run.stdout else {}, run.stderr


def in_words(*options: object) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "inspect", *map(str, options)],
        text=True, capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    return run.stdout


def context(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [c for c in document["contexts"] if c["name"] == name]
    return dict(found)


def thread(document: dict[str, Any], tid: int) -> dict[str, Any]:
    (found,) = [t for t in document["threads"] if t["tid"] == tid]
    return dict(found)


def functions(stack: list[str]) -> list[str]:
    return [frame.split("+0x")[0] for frame in stack]


def check_hung(document: dict[str, Any], pid: int) -> None:
    """What both a live look and a core show of ``hung_guest``."""
    finding = next(f for f in document["findings"] if f["verdict"] == "stuck")
    assert finding["bottom_halves"] == [STRANDED]
    assert finding["polls"] == "main"
    sentence = finding["sentence"]
    assert sentence.startswith(f"the main loop does not run: {pid} (main) waits in bdrv_drain")
    assert sentence.endswith(f"polling `main`; behind it wait {STRANDED} in `iohandler`")
    (half,) = [h for h in context(document, "iohandler")["bottom_halves"] if STRANDED in h["name"]]
    assert half["flags"] == ["PENDING", "SCHEDULED"]
    main = thread(document, pid)
    assert main["blocked_in"] in ("ppoll", "io_uring_enter")
    assert main["complete"]
    assert [poll["context"] for poll in main["polls"]] == ["main"]
    assert {"aio_poll", "qemu_cleanup", "_start"} <= set(functions(main["stack"]))
    assert document["bql"] == {"known": True, "holder": pid}
    (job,) = document["jobs"]
    assert (job["id"], job["type"]) == (JOB, "backup")
    assert functions(job["stack"])[0] == "qemu_coroutine_switch"
    assert "job_yield" in functions(job["stack"])
    # Without its thread's name a 7.2 does not tell an IOThread's id.
    others = [c for c in document["contexts"] if c["name"].startswith("iothread:")]
    assert len(others) == 2
    assert pid not in [c["tid"] for c in others]
    assert document["torn"] == []
    assert document["missing"] == []
