"""Where QEMUBH keeps what, from the code that fills it in, compared with what runs it
(``qtrace.qemu.aio.calibration``)."""

from __future__ import annotations

from qtrace.binary.dataflow import Function
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.errors import ScanFailed
from qtrace.qemu.aio.calibration import bottom_halves
from qtrace.qemu.aio.flow import Argument, Returned, Root, follow
from qtrace.sites.all_plan import BottomHalfLayout

# Before QEMUBH had a name (``Layout.bh_name``) they were called aio_bh_new() and ..._oneshot().
FILLERS = (
    "aio_bh_schedule_oneshot_full", "aio_bh_new_full", "aio_bh_schedule_oneshot", "aio_bh_new",
)  # fmt: skip
# Their first arguments.
ARGUMENTS = ("ctx", "callback", "opaque", "name")
# Instructions from such a function's start that belong to it, at most.
LONG = 60


def calibrate_bottom_half(module: Module) -> BottomHalfLayout:
    """Read the offsets from the functions that make, run and take off a bottom half.

    Raises ScanFailed when the code does not tell, or when two functions disagree.
    """
    stored = _stored(module)
    run = bottom_halves(ModuleDisassembly(module))
    called, flags = (run.get("bh_cb"), run.get("bh_opaque")), run.get("bh_flags")
    if not {"ctx", "callback", "opaque"} <= stored.keys() or flags is None:
        what = "where it keeps its flags" if stored else "where it keeps what"
        code = "takes a QEMUBH off its list" if stored else "fills a QEMUBH"
        raise ScanFailed(
            f"{module.name}: the code that {code} does not show {what}",
            "install the debug symbols of this QEMU, or record without --all",
        )
    if None not in called and called != (stored["callback"], stored["opaque"]):
        raise ScanFailed(
            f"{module.name}: aio_bh_call() and the code that fills a QEMUBH disagree",
            "record without --all",
        )
    return BottomHalfLayout(
        stored["ctx"], stored.get("name", -1), stored["callback"], stored["opaque"], flags
    )


def function_of(module: Module, symbol: str) -> Function | None:
    """A function's code, None when it has no symbol or no unwind information."""
    address = module.symbols.address(symbol)
    extent = module.frames.function(address) if address is not None else None
    return Function(module.elf, *extent) if extent else None


def _stored(module: Module) -> dict[str, int]:
    """Offset by argument: what these functions store into the memory that they allocate."""
    program = ModuleDisassembly(module)
    for symbol in FILLERS:
        arguments = ARGUMENTS if symbol.endswith("_full") else ARGUMENTS[:3]
        found: dict[str, int] = {}
        allocated: Root | None = None
        for step in follow(program, symbol, LONG):
            place, value = step.address(0), step.value(1)
            if step.instruction.mnemonic != "mov" or place is None or value is None:
                continue
            is_argument = isinstance(value.root, Argument) and not value.offset
            if not (is_argument and isinstance(place.root, Returned)):
                continue
            allocated = allocated or place.root
            number = value.root.number if isinstance(value.root, Argument) else len(arguments)
            if place.root == allocated and number < len(arguments):
                found.setdefault(arguments[number], place.offset)
        if {"ctx", "callback", "opaque"} <= found.keys():
            return found
    return {}
