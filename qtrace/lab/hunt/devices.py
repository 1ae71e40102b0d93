"""The devices that a hunt makes its guest work with: how QEMU gets one, and what the guest does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtrace.lab.hunt.guest_program import Program

# The node of the guest's disk, and the IOThread that there is in every guest.
NODE, IOTHREAD = "disk", "io0"
# Where guest.S puts what it finds.
IO, MMIO, BAR_IO, BAR_MMIO = 0xC000, 0xFE000000, 0x100, 0x100000
SLOT = "addr=3,romfile="


@dataclass(frozen=True)
class Device:
    """One.

    Attributes:
        name: as on the command line.
        models: QEMU's names of what it takes; a build without one of them cannot have it.
        arguments: of QEMU; ``{iothread}`` stands for what puts the first of them on an IOThread,
            ``{node}`` for its disk.
        program: what the guest does.
        can_have_iothread: whether its requests can be an IOThread's.
        second_chip: it is the second flash chip.
    """

    name: str
    models: tuple[str, ...]
    arguments: tuple[str, ...]
    program: Program
    can_have_iothread: bool = False
    second_chip: bool = False

    def command(self, *, iothread: bool, eventfd: bool) -> Sequence[str]:
        """QEMU's arguments for it.

        Args:
            iothread: it is on one, which takes an eventfd.
            eventfd: else, whether the guest's notifications are taken by one.
        """
        on = f",iothread={IOTHREAD}" if iothread else f",ioeventfd={'on' if eventfd else 'off'}"
        return [
            part.replace("{virtio}", on if self.can_have_iothread else "")
            for part in self.arguments
        ]


def _virtio_blk(name: str, routine: str = "virtio-blk", *flags: str, pace: int = 0) -> Device:
    return Device(
        name, ("virtio-blk-pci",),
        ("-device", f"virtio-blk-pci,id=dut,drive={NODE},{SLOT}{{virtio}}"),
        Program(routine, flags, pace, "port", IO), can_have_iothread=True,
    )  # fmt: skip


def _virtio_scsi(name: str, routine: str, *flags: str) -> Device:
    return Device(
        name, ("virtio-scsi-pci", "scsi-hd"),
        ("-device", f"virtio-scsi-pci,id=hba,{SLOT}{{virtio}}",
         "-device", f"scsi-hd,id=dut,bus=hba.0,drive={NODE}"),
        Program(routine, flags, check="port", check_at=IO), can_have_iothread=True,
    )  # fmt: skip


def _hba(name: str, model: str, program: Program) -> Device:
    return Device(
        name, (model, "scsi-hd"),
        ("-device", f"{model},id=hba,{SLOT}", "-device", f"scsi-hd,id=dut,bus=hba.0,drive={NODE}"),
        program,
    )  # fmt: skip


def _card(name: str, model: str, *flags: str) -> Device:
    return Device(
        name, ("sdhci-pci", model),
        ("-device", f"sdhci-pci,id=hba,{SLOT}", "-device", f"{model},id=dut,drive={NODE}"),
        Program("sd", flags, check="memory", check_at=MMIO + 0x40),
    )  # fmt: skip


# A disk that the guest leaves alone.
_IDLE_DISK = ("-device", f"virtio-blk-pci,id=dut,drive={NODE},addr=5,romfile=")
_AHCI_CAPABILITIES = MMIO + 5 * BAR_MMIO

DEVICES = {
    device.name: device
    for device in (
        Device("pflash", ("virtio-blk-pci",), _IDLE_DISK, Program("pflash"), second_chip=True),
        _virtio_blk("virtio-blk-once", "virtio-blk", "once"),
        _virtio_blk("virtio-blk-reset", "virtio-reset"),
        _virtio_blk("virtio-blk"),
        _virtio_blk("virtio-blk-paced", pace=200),
        _virtio_blk("virtio-blk-writes", "virtio-blk", "writes"),
        _virtio_blk("virtio-blk-waits", "virtio-blk", "waits"),
        _virtio_scsi("virtio-scsi-reset", "virtio-reset"),
        _virtio_scsi("virtio-scsi", "virtio-scsi"),
        _virtio_scsi("virtio-scsi-waits", "virtio-scsi", "waits"),
        Device(
            "nvme", ("nvme",), ("-device", f"nvme,id=dut,serial=1,drive={NODE},{SLOT}"),
            Program("nvme", check="memory", check_at=MMIO),
        ),
        *(
            Device(
                name, ("ahci", "ide-hd"),
                ("-device", f"ahci,id=hba,{SLOT}",
                 "-device", f"ide-hd,id=dut,bus=hba.0,drive={NODE}"),
                Program("ahci", flags, check="memory", check_at=_AHCI_CAPABILITIES),
            )
            for name, flags in (("ahci", ()), ("ahci-waits", ("waits",)))
        ),
        *(
            Device(
                name, ("ide-hd",), ("-device", f"ide-hd,id=dut,bus=ide.0,unit=0,drive={NODE}"),
                Program("ide", flags),
            )
            for name, flags in (("ide", ()), ("ide-waits", ("waits",)))
        ),
        Device(
            "floppy", ("floppy", "virtio-blk-pci"),
            (*_IDLE_DISK, "-blockdev",
             "driver=raw,node-name=floppy,file.driver=file,file.filename=floppy.img",
             "-device", "floppy,unit=0,drive=floppy"),
            Program("floppy"),
        ),
        _card("sd", "sd-card"),
        _card("emmc", "emmc", "emmc"),
        Device(
            "usb-storage", ("piix3-usb-uhci", "usb-storage"),
            ("-device", f"piix3-usb-uhci,id=hba,{SLOT.split(',')[0]}",
             "-device", f"usb-storage,id=dut,bus=hba.0,drive={NODE}"),
            Program("uhci"),
        ),
        _hba("lsi", "lsi53c895a", Program("lsi")),
        _hba("megasas", "megasas", Program("megasas")),
        _hba("mptsas", "mptsas1068", Program("mptsas")),
        Device("eject", ("virtio-blk-pci",), _IDLE_DISK, Program("eject")),
    )
}  # fmt: skip
