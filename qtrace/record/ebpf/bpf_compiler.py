"""The BPF programs of probes/, compiled by the distribution's bcc.

Only for sources that were changed, for `--compile`, and to make the image that comes with qtrace
(``python -m scripts.probe_image``): recording needs neither bcc nor kernel headers.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtrace.errors import RecorderUnavailable
from qtrace.record.ebpf.bcc_module import load_bcc
from qtrace.record.ebpf.bpf_image import (
    INSTRUCTION,
    PROBES,
    PROGRAMS,
    Function,
    Hole,
    Image,
    Layout,
    MapSpec,
)
from qtrace.record.ebpf.kernel_headers import prepare_headers

# clang in libbcc takes one program at a time: two at once have ended in a segmentation fault.
_compiling = threading.Lock()
# eBPF instructions: ld_imm64 of a map has 1 (BPF_PSEUDO_MAP_FD) as its source register.
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1
MOVE_NUMBER, LOAD_WORD = 0xB7, 0x79
# The ring buffers that are read record by record: what is read in blocks has a header of its own
# to lay them out.
RECORDS = ("events", "steps", "execs")
INCLUDED = re.compile(r'^#include "(.+)"$', re.MULTILINE)
# unshare(2): a working folder of one's own.
CLONE_FS = 0x200


def compiler() -> str:
    """What compiles here, in words. Raises RecorderUnavailable when there is no bcc."""
    bcc = load_bcc()
    loaded = Path("/proc/self/maps").read_text(errors="replace")
    llvm = re.search(r"libLLVM[-.]([\d.]*\d)", loaded)
    return f"bcc {bcc.__version__}" + (f" with LLVM {llvm[1]}" if llvm else "")


def compile_image(file: str, before: str = "") -> Image:
    """Compile one of ``PROGRAMS``.

    Args:
        before: C that comes first: what chooses another processor's registers.

    Raises RecorderUnavailable when bcc, its headers or the compiler refuse.
    """
    with _compiling:
        return _compile(file, before)


def _compile(file: str, before: str) -> Image:
    prepare_headers()
    bcc = load_bcc()
    # bcc compiles in the headers' folder and makes it the working one meanwhile: this thread's
    # alone, or files would be opened, and programs started, there.
    ctypes.CDLL(None).unshare(CLONE_FS)
    try:
        module = bcc.BPF(text=f"{before}{_source(file)}".encode())
    except Exception as error:
        # bcc raises bare Exceptions; what clang said went to stderr.
        raise RecorderUnavailable(
            f"the BPF program cannot be compiled: {str(error).strip() or repr(error)}",
            "qtrace doctor says what is missing",
        ) from error
    try:
        functions, tables = PROGRAMS[file]
        names, maps = {}, {}
        for name in tables:
            fd = bcc.lib.bpf_table_fd(module.module, name.encode())
            names[fd], maps[name] = name, _spec(fd)
        known = _holes()
        compiled = {
            function: _function(module.dump_func(function.encode()), names, known)
            for function in functions
        }
        layouts = {name: _layout(module, name) for name in RECORDS if name in tables}
        return Image(compiled, maps, layouts)
    finally:
        module.cleanup()


def _source(file: str) -> str:
    """A source with its own headers in it: of a header that is included, bcc would leave the calls
    on maps as they stand, and clang takes them for what cannot be reached and leaves them out."""
    text = (PROBES / file).read_text()
    return INCLUDED.sub(lambda header: _source(header[1]), text)


def _holes() -> dict[tuple[int, int], str]:
    """Every hole's name, by the kind of its instruction and what stands there."""
    text = (PROBES / "holes.h").read_text()
    first = {n: int(v, 16) for n, v in re.findall(r"#define FIRST_(\w+) (0x[0-9a-f]+)", text)}
    (body,) = re.findall(r"enum hole \{(.*?)\};", text, re.DOTALL)
    names = re.findall(r"^\s*(\w+),", body, re.MULTILINE)
    return {
        (opcode, first[kind] + number): name
        for opcode, kind in ((MOVE_NUMBER, "NUMBER"), (LOAD_WORD, "REGISTER"))
        for number, name in enumerate(names)
    }


def _function(
    code: bytes, maps: Mapping[int, str], known: Mapping[tuple[int, int], str]
) -> Function:
    """The instructions without what refers to maps and fills holes, and where these were."""
    raw, references, holes = bytearray(code), [], []
    for index in range(len(raw) // INSTRUCTION.size):
        at = index * INSTRUCTION.size
        opcode, registers, offset, immediate = INSTRUCTION.unpack_from(raw, at)
        if opcode == LD_IMM64 and registers >> 4 == PSEUDO_MAP_FD:
            references.append((index, maps[immediate]))
            INSTRUCTION.pack_into(raw, at, opcode, registers, offset, 0)
        elif name := known.get((opcode, immediate if opcode == MOVE_NUMBER else offset)):
            holes.append(Hole(index, "number" if opcode == MOVE_NUMBER else "register", name))
            INSTRUCTION.pack_into(raw, at, opcode, registers, 0, 0)
    return Function(bytes(raw), references, holes)


def _spec(fd: int) -> MapSpec:
    """A map's attributes, from the kernel itself."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    number = {name: int(facts[name].strip(), 0) for name in facts if name.startswith("map_")}
    size = {name: int(facts[name], 0) for name in ("key_size", "value_size", "max_entries")}
    return MapSpec(
        number["map_type"],
        size["key_size"],
        size["value_size"],
        size["max_entries"],
        number["map_flags"],
    )


def _layout(module: Any, name: str) -> Layout:
    """A ring buffer's struct as bcc lays it out: the one definition is the C header's."""
    record = ctypes.create_string_buffer(1 << 17)
    event = type(module[name.encode()].event(ctypes.addressof(record)))
    found = {}
    for field in event._fields_:
        descriptor = getattr(event, field[0])
        found[str(field[0])] = (int(descriptor.offset), int(descriptor.size))
    return found
