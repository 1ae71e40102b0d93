"""``aio nodes``, ``aio requests`` and ``aio coroutines``: the block layer, and who waits in it."""

from __future__ import annotations

import re
from pathlib import Path

import gdb

from qtrace.gdbscripts.command import AioCommand
from qtrace.gdbscripts.gdb_look import Qemu
from qtrace.gdbscripts.gdb_stacks import code_name
from qtrace.gdbscripts.gdb_target import PROOF, GdbProgram, is_core
from qtrace.gdbscripts.tables import say, table, tell
from qtrace.gdbscripts.target_files import NAMELESS
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.guarded import guarded_in
from qtrace.machine.memory import PAGE, Pages
from qtrace.qemu.aio.awake import Awake
from qtrace.qemu.block.block_calibration import calibrate
from qtrace.qemu.block.block_layout import BlockLayout
from qtrace.qemu.block.block_model import ASLEEP, BlockLook, Node
from qtrace.qemu.block.block_walk import BlockReader, Unwound
from qtrace.qemu.block.coroutine_waits import wait_of
from qtrace.qemu.block.requests import in_flight

# A core's parts, as `info files` lists them.
PART = re.compile(r"^\s+(0x\w+) - (0x\w+) is load\d+", re.MULTILINE)
# The frames of a coroutine that is free: qemu_coroutine_switch() in its trampoline.
FREE_FRAMES = 2

_layouts: dict[tuple[str, int | None], BlockLayout] = {}


def block_layout() -> BlockLayout:
    """The layout of the program's block layer, read from its code once."""
    program = GdbProgram()
    key = (str(gdb.current_progspace().filename), program.address(PROOF))
    if key not in _layouts:
        _layouts[key] = calibrate(program)
    return _layouts[key]


def look() -> BlockLook:
    """The block layer of the QEMU that gdb has before it."""
    qemu = Qemu()
    return BlockReader(_Source(qemu), block_layout()).look(qemu.look())


class _Source:
    """As ``qtrace.qemu.block.block_walk.BlockSource``."""

    architecture = X86_64

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self.memory = qemu.memory
        self.layout = qemu.layout

    def pointer_guard(self) -> int | None:
        return self._qemu.guard

    def guarded(self) -> list[tuple[int, int]]:
        if is_core():
            listed = PART.findall(gdb.execute("info files", to_string=True))
            return [(int(start, 16) - PAGE, int(end, 16)) for start, end in listed]
        try:
            return guarded_in(Path(f"/proc/{self._qemu.pid}/maps").read_bytes())
        except OSError:
            # The process of a remote target.
            return []

    def awake(self) -> Awake:
        return self._qemu.awake

    def unwound(self, co: int, registers: dict[str, int], memory: Pages) -> Unwound:
        stack = self._qemu.stacks.of_coroutine(co)
        if stack is None:
            return Unwound((), False, False)
        if stack.whole and len(stack.names) <= FREE_FRAMES:
            return Unwound((), True, True)
        return Unwound(stack.names[:-1] if stack.whole else stack.names, stack.whole, False)

    def name(self, address: int) -> str:
        return code_name(address)


class Nodes(AioCommand):
    """List the nodes of the block graph.

    aio nodes

    CHILDREN are the nodes below one, with the names of the edges. REQUESTS are those that a node
    has in hand now, of all its users; a node that is drained takes no new ones.
    """

    name = "nodes"

    def run(self, arguments: list[str]) -> None:
        if arguments:
            raise self.usage()
        blocks = look()
        names = {node.address: node.name for node in blocks.nodes or ()}
        table(
            ("NODE", "DRIVER", "CHILDREN", "REQUESTS", "", "FILE"),
            [_row(blocks, node, names) for node in blocks.nodes or ()],
            "no block nodes",
            ["the list of nodes"] if blocks.nodes is None else (),
        )
        tell_unread(blocks)


def _row(blocks: BlockLook, node: Node, names: dict[int, str]) -> tuple[object, ...]:
    children = " ".join(f"{edge}:{names.get(child) or '?'}" for edge, child in node.children)
    requests = sum(request.node == node.address for request in blocks.requests)
    drained = "drained" if node.quiesced else ""
    return (node.name, node.driver or "-", children or "-", requests, drained, node.filename or "-")


class Requests(AioCommand):
    """List the block requests that are in flight, and what each waits for.

    aio requests

    Of a request that goes through several nodes the one at fault is shown, the lowest that has it.
    Flushes, and what a throttle group holds back, are shown without an offset. Whom a request
    waits for outside of QEMU `qtrace inspect` tells.
    """

    name = "requests"

    def run(self, arguments: list[str]) -> None:
        if arguments:
            raise self.usage()
        blocks = look()
        rows = []
        for one in in_flight(blocks):
            fds = ", ".join(f"fd {fd}" for fd in one.co.fds) if one.co else ""
            node = one.node.label if one.node else "-"
            device = one.backend.label if one.backend else ""
            waits = one.wait.text + (f" ({fds})" if fds else "")
            address = f"{one.co.address:#x}" if one.co else "-"
            rows.append((one.what, node, device or "-", address, waits))
        table(("REQUEST", "NODE", "FOR", "COROUTINE", "WAITS"), rows, "no request is in flight")
        tell_unread(blocks)


class Coroutines(AioCommand):
    """List the coroutines that are not free, each with what it waits for and its stack.

    aio coroutines

    There is no list of them in QEMU: each is found through its stack. aio coroutine ADDRESS shows
    one with the addresses of its frames.
    """

    name = "coroutines"

    def run(self, arguments: list[str]) -> None:
        if arguments:
            raise self.usage()
        blocks = look()
        if blocks.coroutines is None:
            raise gdb.GdbError("the code of this QEMU does not show where coroutines lie")
        for co in blocks.coroutines:
            doing = wait_of(co).text if co.state == ASLEEP else co.state
            behind = ", ".join(f"{holder:#x}" for holder in co.holders)
            behind = f", behind coroutine {behind}" if behind else ""
            tell(f"coroutine {co.address:#x} of {co.entry}: {doing}{behind}")
            if co.frames:
                functions = (frame.partition("+")[0] for frame in co.frames)
                tell("    " + " < ".join(NAMELESS.sub("0x", name) for name in functions))
        say(f"{len(blocks.coroutines)} in use, {blocks.free} free")
        tell_unread(blocks)


def tell_unread(blocks: BlockLook) -> None:
    """Say what could not be read, and which facts are not known."""
    for what in blocks.torn:
        tell(f"not readable: {what}")
    if blocks.missing:
        tell(f"not shown by the code of this QEMU: {', '.join(blocks.missing)}")
