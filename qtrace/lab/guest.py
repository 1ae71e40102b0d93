"""A virtual machine of our own: stock QEMU, our firmware, two QMP sockets, nothing left over."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from qtrace.errors import LabFailed, QmpFailed
from qtrace.host.with_parent import end_with_parent
from qtrace.lab.firmware import CHIP_BYTES, Firmware, image
from qtrace.lab.workdir import work_folder
from qtrace.machine.stat_file import STATE, STIME, UTIME, stat_fields
from qtrace.machine.thread_files import ThreadFiles
from qtrace.process.qmp_client import QmpClient

Accelerator = Literal["tcg", "kvm"]

DEFAULT_QEMU = "qemu-system-x86_64"
# The node name of a guest's disk, and its size.
DISK = "disk0"
DISK_MIB = 16
# A guest writes after some 0.1 s; beside much other work, emulated, after many times that.
START_TIMEOUT_S = 60.0
QMP_TIMEOUT_S = 30.0

_KVM_GET_API_VERSION = 0xAE00
_KVM_API_VERSION = 12


def find_qemu(name: str = DEFAULT_QEMU) -> Path:
    """The QEMU of that name or path.

    Raises:
        LabFailed: there is none.
    """
    found = shutil.which(name)
    if found is None:
        raise LabFailed(
            f"{name} is not an executable here",
            "apt install qemu-system-x86, or name another QEMU with --qemu",
        )
    return Path(found).absolute()


def kvm_works() -> bool:
    """Whether this user can use KVM on this host."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _KVM_GET_API_VERSION) == _KVM_API_VERSION
    except OSError:
        return False
    finally:
        os.close(fd)


class Guest:
    """One running guest for as long as the context lasts.

    ``idle_sockets`` make the race of QEMU issue 2111 likely without touching QEMU: a vCPU
    thread gets at the main context's bottom halves while the main loop is in ppoll() without
    the BQL, and that takes longer the more descriptors it watches, as with a host's many
    devices and character devices. With 200 of them 1 to 30 saves in 100 were run by the vCPU
    thread; with none, 1 in 400 to 2,500.

    On entry QEMU answers QMP and, with the ``pflash`` firmware, its vCPU thread has been
    inside ``aio_poll()`` for the guest's own device writes. On exit QEMU is killed and reaped
    and its folder removed; should this process die without that, the kernel kills QEMU. Keep
    it in the thread that entered it: the kernel watches that thread.

    Args:
        qemu: path of a qemu-system-x86_64.
        accel: ``tcg`` or ``kvm``.
        firmware: ``pflash`` (device writes without a pause) or ``idle`` (the same machine,
            its vCPU halted).
        debug_threads: let QEMU name its threads.
        idle_sockets: listening character devices that nobody connects to.
        extra_args: more arguments for QEMU; they come first, so that an -accel there wins.
        memory_mib: guest memory.
        disk: give it a disk for snapshots, the node ``DISK``.
        second_chip: the flash chip that the ``pflash`` firmware writes to. It has no snapshots:
            HMP's savevm needs a guest without it.

    Attributes:
        pid: QEMU's process id.
        folder: the guest's own temporary folder.
        qmp: the connected client.
        qmp_socket: the socket ``qmp`` holds.
        second_qmp_socket: a free one.
    """

    pid: int
    folder: Path
    qmp: QmpClient
    qmp_socket: Path
    second_qmp_socket: Path

    def __init__(
        self,
        qemu: Path,
        accel: Accelerator = "tcg",
        firmware: Firmware = "pflash",
        *,
        debug_threads: bool = True,
        idle_sockets: int = 0,
        extra_args: Sequence[str] = (),
        memory_mib: int = 64,
        disk: bool = False,
        second_chip: bool = True,
    ) -> None:
        self.qemu = qemu.absolute()
        self.accel = accel
        self.firmware: Firmware = firmware
        self.debug_threads = debug_threads
        self.idle_sockets = idle_sockets
        self.extra_args = tuple(extra_args)
        self.memory_mib = memory_mib
        self.disk = disk
        self.second_chip = second_chip
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        if self.accel == "kvm" and not kvm_works():
            raise LabFailed(
                "KVM cannot be used here: /dev/kvm is missing or not for this user",
                "use --accel tcg, or give this user access to /dev/kvm",
            )
        with ExitStack() as stack:
            self.folder = stack.enter_context(work_folder())
            self.qmp_socket = self.folder / "lab.qmp"
            self.second_qmp_socket = self.folder / "free.qmp"
            self._process = self._start()
            stack.callback(self.kill)
            self.pid = self._process.pid
            try:
                self.qmp = stack.enter_context(QmpClient(self.qmp_socket, QMP_TIMEOUT_S))
                self._await_ready()
            except QmpFailed as failed:
                raise self._did_not_start() from failed
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        crashed = self.last_words() if isinstance(exc, QmpFailed) else None
        self._cleanup.close()
        if crashed is not None:
            raise LabFailed(
                f"{self.qemu} {crashed}",
                "if that is no known bug of this QEMU, try another one: --qemu PATH",
            ) from exc

    @property
    def alive(self) -> bool:
        """Whether QEMU still runs."""
        return self._process.poll() is None

    def flash_writes(self) -> int:
        """How many of the guest's device writes QEMU has carried out, modulo 2**32.

        Each one took the vCPU thread through ``aio_poll()``. Exact: the number is what the
        firmware writes.
        """
        with self._chip(1).open("rb") as chip:
            return int.from_bytes(chip.read(4), "little")

    def _image(self) -> bytes:
        """The first flash chip: all the guest's software."""
        return image(self.firmware)

    def _chip(self, unit: int) -> Path:
        return self.folder / f"pflash{unit}"

    def _start(self) -> subprocess.Popen[bytes]:
        self._chip(0).write_bytes(self._image())
        self._chip(1).write_bytes(bytes(CHIP_BYTES))
        if self.disk:
            self._make_disk()
        with ExitStack() as stack:
            log = stack.enter_context(self._log.open("wb"))
            # Listening before QEMU starts: connecting is the handshake, nothing to poll for.
            sockets = (self.qmp_socket, self.second_qmp_socket)
            servers = [stack.enter_context(_listen(path)).fileno() for path in sockets]
            try:
                return subprocess.Popen(
                    self._command(servers),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    pass_fds=servers,
                    preexec_fn=end_with_parent,
                    # Ctrl-C is for qtrace, which ends the guest when it has what it wants.
                    process_group=0,
                )
            except OSError as error:
                raise LabFailed(
                    f"{self.qemu} cannot be started: {error.strerror}",
                    "apt install qemu-system-x86, or name another QEMU with --qemu",
                ) from error

    def _command(self, servers: Sequence[int]) -> list[str]:
        """QEMU's arguments. Files are named relative to the folder it is started in, so that
        neither a comma in its name nor the length limit of a socket's path matters."""
        command = [
            str(self.qemu), *self.extra_args,
            "-name", "qtrace-lab,debug-threads=" + ("on" if self.debug_threads else "off"),
            "-accel", self.accel, "-machine", "pc", "-m", str(self.memory_mib),
            "-nodefaults", "-no-user-config", "-display", "none",
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={self._chip(0).name}",
        ]  # fmt: skip
        if self.second_chip:
            command += ["-drive", f"if=pflash,unit=1,format=raw,file={self._chip(1).name}"]
        if self.disk:
            # Nothing of it is needed once QEMU has gone: the host need not write it to a disk.
            file = f"file.driver=file,file.filename={DISK},file.cache.no-flush=on"
            command += ["-blockdev", f"qcow2,node-name={DISK},cache.no-flush=on,{file}"]
        for fd in servers:
            command += ["-chardev", f"socket,id=qmp{fd},fd={fd},server=on,wait=off"]
            command += ["-mon", f"chardev=qmp{fd},mode=control"]
        for number in range(self.idle_sockets):
            socket_name = f"idle{number}"
            command += [
                "-chardev",
                f"socket,id={socket_name},path={socket_name},server=on,wait=off",
            ]
        return command

    def _make_disk(self) -> None:
        """A snapshot lies in the disk's own image: what the guest's memory takes, and more."""
        beside = self.qemu.with_name("qemu-img")
        program = str(beside) if beside.exists() else "qemu-img"
        command = [program, "create", "-q", "-f", "qcow2", DISK, f"{DISK_MIB}M"]
        try:
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise LabFailed(
                f"{program} makes no disk: {error}", "apt install qemu-utils"
            ) from error

    @property
    def _log(self) -> Path:
        return self.folder / "qemu.log"

    def _await_ready(self) -> None:
        """Until the guest does what it is for."""
        if self.firmware != "pflash":
            return
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.flash_writes() == 0:
            if not self.alive or time.monotonic() > deadline:
                raise self._did_not_start()
            time.sleep(0.001)

    def _did_not_start(self) -> LabFailed:
        ended = self.last_words()
        if ended is None:
            return LabFailed(
                f"{self.qemu} runs, but the guest does not in {START_TIMEOUT_S:g} s"
                f" ({self.firmware} firmware): {self._vcpus()}",
                "use a qemu-system-x86_64; QEMU's -d int,cpu_reset shows where the guest is",
            )
        return LabFailed(
            f"{self.qemu} did not start: it {ended}",
            "the lab needs a qemu-system-x86_64 with the pc machine: name one with --qemu",
        )

    def _vcpus(self) -> str:
        """What the processors' threads have done, and where they are, in words."""
        files = ThreadFiles(self.pid)
        told = []
        for tid, name in files.names().items():
            fields = stat_fields(files.read(tid, "stat"))
            if name.startswith("CPU ") and fields:
                ran = (int(fields[UTIME]) + int(fields[STIME])) / os.sysconf("SC_CLK_TCK")
                told.append(f"{name} ran {ran:g} s, {fields[STATE]} {files.wchan(tid)}".rstrip())
        return "; ".join(told) or "there is no vCPU thread"

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status once it has ended, the negative number of the signal that ended it;
        None where it runs on for so long."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def last_words(self) -> str | None:
        """How QEMU ended, and the last line it wrote; None when it still runs."""
        # Its sockets close a moment before its end can be seen.
        status = self.wait(1.0)
        if status is None:
            return None
        lines = self._log.read_text(errors="replace").strip().splitlines()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"ended ({how}): {lines[-1] if lines else 'without a message'}"

    def kill(self) -> None:
        """End it, if it has not ended, and reap it."""
        # SIGKILL: under this firmware QEMU has been seen to ignore SIGTERM for minutes.
        self._process.kill()
        self._process.wait()


def _listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    return server
