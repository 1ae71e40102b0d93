"""The guest's firmware: the shipped bytes, and how they are built from ``firmware.S``."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

Firmware = Literal["pflash", "idle"]

CHIP_BYTES = 64 * 1024
# Where the shipped end of the chip lies in the guest's address space.
LINK_ADDRESS = 0xFFFFFF00
HERE = Path(__file__).parent
SOURCE = HERE / "firmware.S"


def shipped(firmware: Firmware) -> Path:
    """The built file of that firmware, the end of a chip."""
    return HERE / f"firmware-{firmware}.bin"


def image(firmware: Firmware) -> bytes:
    """A whole flash chip, ``CHIP_BYTES`` long, with the firmware at its end."""
    return shipped(firmware).read_bytes().rjust(CHIP_BYTES, b"\xff")


def build(firmware: Firmware) -> bytes:
    """Assemble ``firmware.S`` anew; see ``assemble``."""
    return assemble(SOURCE, LINK_ADDRESS, ["IDLE"] if firmware == "idle" else [])


def assemble(source: Path, address: int, defines: Sequence[str] = ()) -> bytes:
    """Assemble and link code for an address of the guest, with gcc and ld.

    It may include ``flat_mode.S``.

    Raises:
        FileNotFoundError: no gcc or ld.
        subprocess.CalledProcessError: either of them failed.
    """
    options = [f"-D{define}" for define in defines]
    with tempfile.TemporaryDirectory(prefix="qtrace-firmware-") as folder:
        objects, binary = Path(folder, "firmware.o"), Path(folder, "firmware.bin")
        compiled = ["gcc", "-m32", f"-I{HERE}", *options, "-c", str(source), "-o", str(objects)]
        linked = ["ld", "-m", "elf_i386", "-Ttext", hex(address), "--oformat", "binary",
                  str(objects), "-o", str(binary)]  # fmt: skip
        for command in (compiled, linked):
            subprocess.run(command, check=True)
        return binary.read_bytes()


if __name__ == "__main__":
    for name in get_args(Firmware):
        shipped(name).write_bytes(build(name))
