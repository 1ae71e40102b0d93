"""A guest of a hunt: one device at work, its memory in a file, a core where it is allowed."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.hunt.devices import IOTHREAD, NODE, Device
from qtrace.lab.hunt.guest_program import Results, read_results

MEMORY_MIB = 64
READY_S = 5.0
# Without an answer for so long QEMU hangs: a round of any command takes a tenth of a second.
SILENT_S = 5.0
RAM, DISK_FILE, FLOPPY_FILE = "ram", "disk.qcow2", "floppy.img"


class HuntGuest(Guest):
    """One running guest for as long as the context lasts; see ``Guest``.

    Args:
        files: the folder with a disk and a floppy to copy.
        iothread: the device's requests are an IOThread's.
        eventfd: else, whether an eventfd takes the guest's notifications.
        more: further arguments of QEMU.
    """

    def __init__(
        self,
        qemu: Path,
        accel: Accelerator,
        device: Device,
        files: Path,
        *,
        iothread: bool = False,
        eventfd: bool = False,
        more: Sequence[str] = (),
    ) -> None:
        self.device, self._files = device, files
        size = f"{MEMORY_MIB}M"
        file = f"file.driver=file,file.node-name=file,file.filename={DISK_FILE}"
        arguments = (
            "-smp", "2",
            "-object", f"memory-backend-file,id=ram,size={size},share=on,mem-path={RAM}",
            "-machine", "memory-backend=ram",
            "-object", f"iothread,id={IOTHREAD}",
            "-blockdev", f"driver=qcow2,node-name={NODE},{file}",
            *device.command(iothread=iothread, eventfd=eventfd),
            *more,
        )  # fmt: skip
        super().__init__(
            qemu, accel, "idle", extra_args=arguments, memory_mib=MEMORY_MIB,
            second_chip=device.second_chip,
        )  # fmt: skip

    @property
    def results(self) -> Results:
        """What the guest has counted; also after QEMU's end."""
        return read_results(self.folder / RAM)

    @property
    def core(self) -> Path | None:
        """The core that its end has left."""
        return next(iter(sorted(self.folder.glob("core*"))), None)

    @property
    def said(self) -> list[str]:
        """The lines that QEMU wrote, less those of what this host's processor lacks."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return [line for line in lines if "host doesn't support requested feature" not in line]

    def works(self, within_s: float) -> bool:
        """Whether the guest's counter moves; one that halts after its first round never does."""
        before, until = self.results.rounds, time.monotonic() + within_s
        while self.results.rounds == before:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def _image(self) -> bytes:
        for name in (DISK_FILE, FLOPPY_FILE):
            shutil.copyfile(self._files / name, self.folder / name)
        return self.device.program.image()

    def _await_ready(self) -> None:
        self.qmp.timeout_s = SILENT_S
        allow_cores(self.pid)
        deadline = time.monotonic() + READY_S
        quiet = self.device.program.routine == "nothing"
        while not quiet and self.results.rounds == 0:
            if not self.alive or time.monotonic() > deadline:
                raise self._did_not_start()
            time.sleep(0.001)


def allow_cores(pid: int) -> bool:
    """Let a process leave a core, as large as it may; whether it may leave any."""
    _soft, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    except (PermissionError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (hard, hard))
        return hard != 0
    return True
