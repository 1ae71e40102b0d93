"""The hunt's guest: one shipped program, and the words in it that tell which device to work.

What happened in it lies in the guest's memory, a file that the host maps, too: it can be read
whatever QEMU does, and after its end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from qtrace.lab.firmware import CHIP_BYTES, HERE, assemble

# As guest.S has them.
ROUTINES = (
    "nothing", "pflash", "virtio-reset", "virtio-blk", "virtio-scsi", "nvme", "ahci", "ide",
    "floppy", "sd", "uhci", "lsi", "megasas", "mptsas", "eject",
)  # fmt: skip
FLAGS = {"once": 1, "writes": 2, "waits": 4, "emmc": 8}
CHECKS = {"": 0, "port": 1, "memory": 2}
LINK_ADDRESS = 0xFFFFF000
CONFIG_AT = 16
RESULTS_AT = 0x1000
# What the disks are filled with, byte by byte.
PATTERN = 0x05

SOURCE = HERE / "hunt/guest.S"
SHIPPED = HERE / "hunt/guest.bin"


@dataclass(frozen=True)
class Program:
    """What the guest does.

    Attributes:
        routine: one of ``ROUTINES``.
        flags: of ``FLAGS``: ``once`` then halt; ``writes``; ``waits`` for what it has asked for,
            and checks it.
        pace: reads of a port, some microseconds each, between two rounds.
        check: what the second vCPU reads meanwhile, a ``port`` or ``memory``, at ``check_at``.
    """

    routine: str
    flags: tuple[str, ...] = ()
    pace: int = 0
    check: Literal["", "port", "memory"] = ""
    check_at: int = 0

    def image(self) -> bytes:
        """A whole flash chip."""
        code = bytearray(SHIPPED.read_bytes())
        words = (
            ROUTINES.index(self.routine), sum(FLAGS[flag] for flag in self.flags), self.pace,
            CHECKS[self.check], self.check_at,
        )  # fmt: skip
        struct.pack_into("<5I", code, CONFIG_AT, *words)
        return bytes(code).rjust(CHIP_BYTES, b"\xff")


@dataclass(frozen=True)
class Results:
    """What the guest has counted, modulo 2**32.

    Attributes:
        rounds: of the first vCPU.
        checked, wrong: reads of the second one, and those that gave another value than the first.
        last_wrong, first: such a value, and the first.
        verified, corrupt: blocks that the first one read, and those that were not the disk's.
        last_corrupt: how such a block began.
    """

    rounds: int
    checked: int
    wrong: int
    last_wrong: int
    first: int
    verified: int
    corrupt: int
    last_corrupt: int


def read_results(ram: Path) -> Results:
    """From the file that is the guest's memory."""
    count = len(fields(Results))
    with ram.open("rb") as file:
        file.seek(RESULTS_AT)
        return Results(*struct.unpack(f"<{count}I", file.read(4 * count)))


def build() -> bytes:
    """Assemble ``guest.S`` anew; see ``assemble``."""
    return assemble(SOURCE, LINK_ADDRESS)


if __name__ == "__main__":
    SHIPPED.write_bytes(build())
