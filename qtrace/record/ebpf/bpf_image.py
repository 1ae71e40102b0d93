"""The BPF programs of probes/ as they come with qtrace: compiled, with holes.

A hole (probes/holes.h) is what only the code of a QEMU tells: an offset, a register, whether there
is something. Sizes of maps are told when they are made. So one image serves every QEMU, and every
kernel, as no kernel structure but pt_regs is in it. It is plain JSON, and whatever it holds still
has to pass the kernel's verifier. It is for x86-64 hosts: pt_regs is another elsewhere.

The image says which sources it was made from. Where these are others by now, or it is damaged, the
programs are compiled by bcc, and kept in the cache in the same form.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import qtrace
from qtrace.errors import RecorderUnavailable
from qtrace.host.cache import load_json, store_json
from qtrace.host.digest import blake2b
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.architectures import HOST

INSTRUCTION = struct.Struct("<BBhi")
IMMEDIATE, OFFSET = struct.Struct("<i"), struct.Struct("<h")
# Where these two lie in an instruction.
IMMEDIATE_AT, OFFSET_AT = 4, 2

# Field by field, offset and size in bytes.
Layout = dict[str, tuple[int, int]]
# What fills the holes, by their names: numbers, and offsets of registers in pt_regs.
Filling = Mapping[str, int]
NOTHING: Filling = {}

# Of each source its functions, and its maps; an array of maps behind its model.
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "watch.bpf.c": (
        # With a copy of the stack; without; and what only QMP and jobs are told by.
        ("on_hit", "on_return", "on_command", "on_command_fifth", "on_step"),
        ("events", "steps", "steps_met", "lost", "main_stack", "stack_ends", "recording"),
    ),
    "all.bpf.c": (
        ("enqueue", "run", "ended", "cancel", "co_schedule"),
        ("ring", "rings", "lost", "recording", "events", "turns"),
    ),
    "stats.bpf.c": (
        ("enqueue", "run", "ended"),
        ("running", "scheduled", "sums", "zeros", "lost", "recording"),
    ),
    "exec.bpf.c": (("on_exec",), ("execs", "execs_lost")),
}
# Those that belong at a raw tracepoint; the others sit at uprobes.
AT_TRACEPOINTS = frozenset({"exec.bpf.c"})


def find_probes() -> Path:
    """The folder of the BPF programs' sources: a wheel has it in the package, a checkout beside."""
    package = Path(qtrace.__file__).resolve().parent
    installed = package / "probes"
    return installed if installed.is_dir() else package.parent / "probes"


PROBES = find_probes()
PREBUILT = PROBES / "prebuilt.json"


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What BPF_MAP_CREATE needs: type, sizes in bytes, entries, flags."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Hole:
    """An instruction that is filled in: the number that it moves, or the register that it loads."""

    index: int
    kind: Literal["number", "register"]
    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """Instructions, map references and holes zeroed.

    Attributes:
        references: index of an instruction, name of the map that it refers to.
    """

    code: bytes
    references: list[tuple[int, str]]
    holes: list[Hole]

    def filled(self, map_fds: Mapping[str, int], filling: Filling) -> bytes:
        """The instructions, referring to these maps. Raises KeyError for a hole without filling."""
        code = bytearray(self.code)
        for index, name in self.references:
            IMMEDIATE.pack_into(code, INSTRUCTION.size * index + IMMEDIATE_AT, map_fds[name])
        for hole in self.holes:
            at = INSTRUCTION.size * hole.index
            if hole.kind == "number":
                IMMEDIATE.pack_into(code, at + IMMEDIATE_AT, filling[hole.name])
            else:
                OFFSET.pack_into(code, at + OFFSET_AT, filling[hole.name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled source of probes/: its functions and maps, and of each ring buffer that is read
    record by record how the struct is laid out."""

    functions: dict[str, Function]
    maps: dict[str, MapSpec]
    layouts: dict[str, Layout]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        for function in data["functions"].values():
            function["code"] = base64.b64encode(function["code"]).decode()
            function["holes"] = [list(hole.values()) for hole in function["holes"]]
        for name, spec in self.maps.items():
            data["maps"][name] = list(asdict(spec).values())
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Image:
        """Raises KeyError, TypeError or ValueError when the data is no image."""
        return cls(
            functions={
                name: Function(
                    base64.b64decode(function["code"], validate=True),
                    [(index, to) for index, to in function["references"]],
                    [Hole(*hole) for hole in function["holes"]],
                )
                for name, function in data["functions"].items()
            },
            maps={name: MapSpec(*spec) for name, spec in data["maps"].items()},
            layouts={
                name: {field: (at, size) for field, (at, size) in layout.items()}
                for name, layout in data["layouts"].items()
            },
        )


class NoImage(Exception):
    """There is none that can be used; why, in words that go on after ``the prebuilt probes``."""


def pack(images: Mapping[str, Image], compiled_by: str) -> dict[str, Any]:
    """A file of images of the present sources."""
    programs = {file: image.to_json() for file, image in images.items()}
    return {
        "compiled_by": compiled_by,
        "sources": source_digest(),
        "digest": _digest_of(programs),
        "programs": programs,
    }


def unpack(data: Any) -> dict[str, Image]:
    """The images in such a file. Raises NoImage."""
    try:
        sources, digest, programs = data["sources"], data["digest"], data["programs"]
        if digest != _digest_of(programs):
            raise NoImage("are damaged")
        if sources != source_digest():
            raise NoImage("are of other sources than probes/")
        return {file: Image.from_json(image) for file, image in programs.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoImage("are damaged") from error


def source_digest() -> str:
    """Of all that is compiled."""
    digest = blake2b(digest_size=16)
    for file in sorted(PROBES.glob("*.[ch]")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _digest_of(programs: Any) -> str:
    text = json.dumps(programs, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def read_prebuilt() -> dict[str, Image]:
    """The images that come with qtrace, by source. Raises NoImage."""
    try:
        data = json.loads(PREBUILT.read_bytes())
    except OSError as error:
        raise NoImage(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise NoImage("are damaged") from error
    return unpack(data)


def get_image(file: str, *, compiled: bool = False) -> tuple[Image, str]:
    """The image of one of ``PROGRAMS``: prebuilt, or compiled where that cannot be used.

    Args:
        compiled: by the bcc of this host, whatever there is.

    Returns:
        It, and what is to be said of it: why it was compiled, where nobody asked for that.

    Raises RecorderUnavailable when bcc, its headers or the compiler refuse.
    """
    why = ""
    if not compiled and HOST is not X86_64:
        # Registers lie elsewhere (probes/registers.h).
        why = f"the prebuilt probes are for {X86_64.name} hosts"
    elif not compiled:
        try:
            return read_prebuilt()[file], ""
        except NoImage as reason:
            why = f"the prebuilt probes {reason}"
    try:
        return _compiled(file), why and f"{why}: compiled instead"
    except RecorderUnavailable as error:
        if not why:
            raise
        raise RecorderUnavailable(
            f"{why}, and {error.message}", f"install qtrace again, or {error.remedy}"
        ) from error


def _compiled(file: str) -> Image:
    # Drags in clang.
    from qtrace.record.ebpf.bpf_compiler import compile_image, compiler

    by = compiler()
    key = blake2b(f"{file} {source_digest()} {by}".encode(), digest_size=16)
    name = f"bpf-{key.hexdigest()}.json"
    try:
        return unpack(load_json(name))[file]
    except NoImage:
        image = compile_image(file)
    store_json(name, pack({file: image}, by))
    return image
