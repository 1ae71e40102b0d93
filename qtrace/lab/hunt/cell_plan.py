"""Which cells a hunt has: what was asked for, times what there is."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from qtrace.errors import ExitStatus, LabFailed, QtraceError
from qtrace.lab.guest import Accelerator, find_qemu, kvm_works
from qtrace.lab.hunt.cell import SEED_VERSION, Build, Cell, seed_of
from qtrace.lab.hunt.devices import DEVICES
from qtrace.lab.hunt.qmp_turns import COMMANDS

ASK_S = 20.0


class NothingToHunt(QtraceError):
    """A choice that leaves no cell, or a seed that means nothing here."""

    exit_status = ExitStatus.USAGE


def build_of(qemu: str) -> Build:
    """Ask a QEMU for its version, and which devices of a hunt it has. Raises LabFailed."""
    path = find_qemu(qemu)
    version = re.search(r"version (\S+)", _ask(path, "--version").stdout)
    if version is None:
        raise LabFailed(f"{path} does not tell its version", "name a QEMU by --qemu")
    models = {model for device in DEVICES.values() for model in device.models}
    # One by one: a list of all would load every module, and may abort where one is another build's.
    has = {
        model: " options:" in _ask(path, "-M", "none", "-device", f"{model},help").stdout
        for model in sorted(models)
    }
    return Build(path, version[1], frozenset(model for model in has if has[model]))


def _ask(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise LabFailed(
            f"{path} does not answer {arguments[-1]}: {error}", "name a QEMU by --qemu"
        ) from error


def choose(globs: Sequence[str], known: Iterable[str], what: str) -> list[str]:
    """Those of ``known`` that any of the globs means; all where there is none.

    Raises NothingToHunt.
    """
    names = list(known)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise NothingToHunt(f"no {what} matches '{glob}'", f"there are {', '.join(names)}")
    return [name for name in names if not globs or any(fnmatchcase(name, g) for g in globs)]


def plan(
    builds: Sequence[Build],
    devices: Sequence[str] = (),
    commands: Sequence[str] = (),
    iothreads: Sequence[bool] = (False, True),
    accels: Sequence[Accelerator] = ("kvm", "tcg"),
    *,
    seed: str = "1",
    repeat: int = 1,
) -> list[Cell]:
    """The cells, in an order that the seed gives: whoever ends a hunt early has seen a bit of all.

    Args:
        devices, commands: globs; all when empty.
        iothreads: without and with one; a device that can have none has no cell with one.
        seed: any text, which each cell's seed is made of; or a cell's own seed.
        repeat: so many cells of each kind.

    Raises:
        NothingToHunt
        LabFailed: no KVM, and nothing else was asked for.
    """
    version, dash, digits = seed.partition("-")
    own = bool(dash and re.fullmatch(r"h\d+", version) and re.fullmatch(r"[0-9a-f]{8}", digits))
    if own and version != SEED_VERSION:
        raise NothingToHunt(
            f"the seed {seed} is of another version: here they begin with {SEED_VERSION}-",
            "repeat it with the qtrace that made it, or hunt anew",
        )
    if "kvm" in accels and not kvm_works():
        accels = [accel for accel in accels if accel != "kvm"]
        if not accels:
            raise LabFailed(
                "KVM cannot be used here: /dev/kvm is missing or not for this user",
                "use --accel tcg, or give this user access to /dev/kvm",
            )
    kinds = product(
        builds, choose(devices, DEVICES, "device"), choose(commands, COMMANDS, "command"),
        iothreads, accels, range(repeat),
    )  # fmt: skip
    cells = [
        Cell(
            build, device, command, iothread, accel,
            seed if own else seed_of(seed, device, command, iothread, accel, number),
        )
        for build, device, command, iothread, accel, number in kinds
        if DEVICES[device].can_have_iothread or not iothread
    ]  # fmt: skip
    if not cells:
        raise NothingToHunt(
            "none of these devices can have an IOThread",
            f"those that can: {', '.join(d.name for d in DEVICES.values() if d.can_have_iothread)}",
        )
    random.Random(seed).shuffle(cells)
    return cells
