"""Which vhost-user devices have no backend, by QEMU's command line."""

from __future__ import annotations

from typing import cast

import pytest

from qtrace.host.descriptors import Descriptors
from qtrace.inspection.vhost_user import without_backend

SOCKET = ["-chardev", "socket,id=c,path=/run/a,,b.sock,reconnect=1"]
DISK = ["-device", "vhost-user-blk-pci,chardev=c,num-queues=1"]


class Connected:
    """The descriptors of a QEMU that is connected by some paths."""

    def __init__(self, *paths: str, known: bool = True) -> None:
        self._paths = paths
        self._known = known

    def is_connected_by(self, path: str) -> bool | None:
        return path in self._paths if self._known else None


def told(arguments: list[str], connected: Connected) -> list[str]:
    return without_backend(arguments, cast(Descriptors, connected))


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (DISK, "vhost-user-blk-pci"),
        (["--device", "driver=vhost-user-fs-pci,chardev=c,tag=x"], "vhost-user-fs-pci"),
        (["-device", '{"driver": "vhost-user-fs-pci", "chardev": "c"}'], "vhost-user-fs-pci"),
        (["-netdev", "vhost-user,id=n,chardev=c"], "vhost-user"),
        (["-netdev", '{"type": "vhost-user", "id": "n", "chardev": "c"}'], "vhost-user"),
        (["-object", "cryptodev-vhost-user,id=k,chardev=c"], "cryptodev-vhost-user"),
    ],
)
def test_a_device_whose_socket_nobody_is_connected_to_is_told(device: list[str], kind: str) -> None:
    (text,) = told(["qemu", *device, *SOCKET], Connected("/run/other"))
    assert text.startswith(f"vhost-user device {kind} (chardev c): ")
    assert "nobody is connected to its socket /run/a,b.sock;" in text
    assert told(["qemu", *device, *SOCKET], Connected("/run/a,b.sock")) == []
    assert told(["qemu", *device, *SOCKET], Connected(known=False)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["-device", "virtio-serial", "-device", "virtconsole,chardev=c", *SOCKET],
        # A descriptor that was handed over, of which no path is known.
        ["-chardev", "socket,id=c,fd=3", *DISK],
        ["-device", "{", *SOCKET, "-chardev"],
        ["-name", "vhost-user-blk-pci,chardev=c", *SOCKET],
        [],
    ],
)
def test_of_others_nothing_is_said(arguments: list[str]) -> None:
    assert told(arguments, Connected()) == []
