"""The builds of QEMU that tests run on, and what each stands for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QEMU = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class Build:
    """One build.

    Attributes:
        name: how the tests' ids call it.
        starts: the folder with what starts its programs; may be scripts that enter a root.
        files: the folder with the programs themselves.
        brings: the command that brings it here.
        system: its system emulator.
    """

    name: str
    starts: Path
    files: Path
    brings: str
    system: str = QEMU

    @property
    def is_here(self) -> bool:
        return (self.starts / self.system).exists()


def _rooted(name: str) -> Build:
    folder = ROOT / ".cache/qemus" / name
    return Build(name, folder / "bin", folder / "root/usr/bin", "make qemus")


_installed = Path(shutil.which(QEMU) or f"/usr/bin/{QEMU}").parent
_backports = ROOT / ".cache/qemu-backports/usr/bin"
_arm = ROOT / ".cache/qemu-arm/usr/bin"

BUILDS = {
    build.name: build
    for build in (
        # The machine's own: 7.2, aio_bh_enqueue() inlined into its callers.
        Build("installed", _installed, _installed, "apt-get install qemu-system-x86 qemu-utils"),
        # 10.0, built for the machine's own libraries.
        Build("backports", _backports, _backports, "make qemus"),
        # Ubuntu 24.04's 8.2.2: link-time optimised, with frame pointers and endbr64.
        _rooted("ubuntu"),
        # Debian 13's 10.0: a newer C library.
        _rooted("stable"),
        # The newest of trixie-backports: its loops wait in io_uring_enter().
        _rooted("newest"),
        # 5.2: bottom halves have no names.
        _rooted("old"),
        # 7.2 for guests of another machine.
        Build("arm", _arm, _arm, "make qemus", "qemu-system-arm"),
    )
}


def _foreign(name: str) -> Build:
    folder = ROOT / ".cache/qemus" / name / "root/usr/bin"
    return Build(name, folder, folder, "make qemus", "qemu-system-aarch64")


# For aarch64 hosts: read here, and started by an emulator of such programs alone.
FOREIGN = {
    build.name: build
    for build in (
        # Debian 12's 7.2.
        _foreign("arm64"),
        # Debian 13's 10.0: its return addresses are signed.
        _foreign("arm64-signed"),
    )
}
