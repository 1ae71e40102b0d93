"""Debian's own kernels, booted in a small guest under full emulation (scripts/kernels.sh)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.live.support.on_kernel import REQUESTS, SAVES

KERNELS = ROOT / ".cache/kernels"
# It boots in half a minute and runs ten programs, each of which reads all its files by 9p.
LIMIT_S = 3600


def boot(version: str, out: Path) -> dict[str, Any]:
    """The counts that a guest with that kernel writes down."""
    inside = out / "inside"
    command = f"exec {sys.executable} -m tests.live.support.on_kernel /tmp/out/result"
    inside.write_text(f"#!/bin/sh\ncd {ROOT}\n{command}\n")
    inside.chmod(0o755)
    folder = KERNELS / version
    subprocess.run(
        ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35",
         "-accel", "tcg,thread=multi", "-cpu", "max,-la57,-pku", "-m", "3G", "-smp", "2",
         "-display", "none", "-no-reboot", "-kernel", str(folder / "kernel"),
         "-initrd", str(folder / "initrd"), "-append", "quiet panic=-1",
         "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
         "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
         "-fsdev", f"local,id=out,path={out},security_model=none",
         "-device", "virtio-9p-pci,fsdev=out,mount_tag=out"],
        check=True, timeout=LIMIT_S,
    )  # fmt: skip
    result = out / "result"
    assert result.exists(), (out / "log").read_text() if (out / "log").exists() else "not booted"
    return dict(json.loads(result.read_text()))


@pytest.mark.soak
@pytest.mark.qemu
@pytest.mark.parametrize("version", ["5.10", "6.1", "6.12"])
def test_every_save_and_request_is_counted_on_debians_kernel(version: str, tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("Debian's kernels come by apt")
    subprocess.run([ROOT / "scripts/kernels.sh"], check=True)
    if not (KERNELS / version / "initrd").exists():
        pytest.skip(f"apt knows no kernel {version}")
    found = boot(version, tmp_path)
    links = version == "6.12"
    assert found["release"].startswith(f"{version}.")
    assert found["attach"] == [0, {"main-loop": SAVES}]
    assert [found["rows"][kind] for kind in ("schedule", "run", "return")] == [SAVES] * 3
    assert found["inspect"][0] == found["inspect, uid 65534"][0] == 0
    # A perf event takes one more.
    assert found["four capabilities"][0] == (0 if links else 3)
    assert links or "CAP_SYS_ADMIN" in found["four capabilities"][1]
    assert found["and two more"][0] == 0
    assert found["gdb"] == [0, {"main-loop": SAVES}]
    assert found["lab"] == [0, ""]
    for who in ("run --all", "run --all, uid 65534"):
        bench = found[who]
        assert bench["status"] == [0, ""]
        assert bench["trace"] == bench["kernel"], who
        assert bench["trace"][2] == REQUESTS
