"""A stock QEMU with an idle guest: the test plays the driver of its virtio-net card, by qtest.

With ``x-txburst=1`` the card's bottom half sends one packet and schedules itself for the next one
(virtio_net_tx_bh() in hw/net/virtio-net.c), as it does after 256 packets by default.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrace.lab.guest import Guest

# The device is in slot 16 of bus 0; its registers are at BASE, its queue at RING in guest memory.
CONFIG, BASE, RING, PACKET = 0x80008000, 0xC000, 0x100000, 0x110000
PFN, SELECT, NOTIFY, STATUS = 8, 14, 16, 18
TX, ENTRIES, LENGTH = 1, 256, 70
ACKNOWLEDGE, DRIVER, READY = 1, 2, 4


class Card:
    """The queue for sending of a virtio-net card (legacy registers)."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rw")
        self._available = 0

    def command(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()
        while not (line := self._stream.readline()).startswith("OK"):
            assert line.startswith("IRQ"), line

    def start(self) -> None:
        """What a driver does: places the registers, and hands over a queue full of packets."""
        for register, value in ((0x10, BASE), (0x04, 0x7)):
            self.command(f"outl 0xcf8 {CONFIG + register:#x}")
            self.command(f"outl 0xcfc {value:#x}")
        entry = PACKET.to_bytes(8, "little") + LENGTH.to_bytes(4, "little") + bytes(4)
        ring = b"".join(number.to_bytes(2, "little") for number in range(ENTRIES))
        for address, data in ((RING, entry * ENTRIES), (RING + 4096, bytes(4) + ring)):
            self.command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")
        self.command(f"outb {BASE + STATUS:#x} {ACKNOWLEDGE | DRIVER:#x}")
        self.command(f"outw {BASE + SELECT:#x} {TX:#x}")
        self.command(f"outl {BASE + PFN:#x} {RING >> 12:#x}")
        self.command(f"outb {BASE + STATUS:#x} {ACKNOWLEDGE | DRIVER | READY:#x}")

    def send(self) -> None:
        """The whole queue once."""
        self._available = (self._available + ENTRIES) % (1 << 16)
        self.command(f"writew {RING + 4098:#x} {self._available:#x}")
        self.command(f"outw {BASE + NOTIFY:#x} {TX:#x}")


@contextmanager
def ringing(qemu: Path, folder: Path) -> Iterator[tuple[Guest, Card]]:
    """An idle guest whose card is ready."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/qtest")
        server.listen()
        device = "virtio-net-pci,addr=0x10,disable-modern=on,tx=bh,x-txburst=1"
        extra = ("-device", device, "-qtest", f"unix:{folder}/qtest")
        with Guest(qemu, firmware="idle", extra_args=extra) as guest:
            connection, _ = server.accept()
            with connection:
                card = Card(connection)
                card.start()
                yield guest, card
