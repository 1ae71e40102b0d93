"""BPF programs as bcc compiles them, kept: half a second of clang is paid once.

A program of probes/ has no kernel structure in it, so that its bytecode stays right until
the source, bcc or the kernel changes; all three are in the key. The cache is plain JSON,
and whatever it holds still has to pass the kernel's verifier.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import platform
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qtrace
from qtrace.errors import RecorderUnavailable
from qtrace.host.cache import load_json, store_json
from qtrace.record.ebpf.bcc_module import load_bcc
from qtrace.record.ebpf.kernel_headers import prepare_headers

VERSION = 2
# clang in libbcc takes one program at a time: two at once, from `load_ahead` and `--all`, have
# ended in a segmentation fault.
_compiling = threading.Lock()
# An eBPF instruction; ld_imm64 of a map has 1 (BPF_PSEUDO_MAP_FD) as its source register.
INSTRUCTION = struct.Struct("<BBhi")
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1
# The ring buffers that are read record by record: what is read in blocks has a header of its own
# to lay them out.
RECORDS = ("events", "steps")
# unshare(2): a working folder of one's own.
CLONE_FS = 0x200

Layout = dict[str, tuple[int, int]]


def find_probes() -> Path:
    """The folder of the BPF programs' sources: a wheel has it in the package, a checkout beside."""
    package = Path(qtrace.__file__).resolve().parent
    installed = package / "probes"
    return installed if installed.is_dir() else package.parent / "probes"


PROBES = find_probes()


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What BPF_MAP_CREATE needs: type, sizes in bytes, entries, flags."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled program of probes/.

    Attributes:
        functions: base64 of each function's instructions, map references zeroed.
        maps: the maps it uses.
        references: per function, (index of an instruction, name of the map it refers to).
        layouts: per ring buffer of ``RECORDS`` the struct's fields, each with offset and size in
            bytes.
    """

    functions: dict[str, str]
    maps: dict[str, MapSpec]
    references: dict[str, list[tuple[int, str]]]
    layouts: dict[str, Layout]

    def code(self, function: str, map_fds: Mapping[str, int]) -> bytes:
        """A function's instructions, referring to these maps."""
        code = bytearray(base64.b64decode(self.functions[function]))
        for index, name in self.references[function]:
            struct.pack_into("<i", code, 8 * index + 4, map_fds[name])
        return bytes(code)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Image:
        """Raises KeyError, TypeError or ValueError when the data is no image."""
        return cls(
            functions={str(name): str(code) for name, code in data["functions"].items()},
            maps={name: MapSpec(**spec) for name, spec in data["maps"].items()},
            references={
                name: [(int(index), str(to)) for index, to in found]
                for name, found in data["references"].items()
            },
            layouts={
                name: {field: (int(at), int(size)) for field, (at, size) in layout.items()}
                for name, layout in data["layouts"].items()
            },
        )


@dataclass(frozen=True, slots=True)
class ProbeSource:
    """A file of probes/: the functions and maps in it, and the -D options it expects."""

    file: str
    functions: tuple[str, ...]
    maps: tuple[str, ...]
    defines: tuple[tuple[str, int | str], ...]


def get_image(source: ProbeSource, *, fresh: bool = False) -> Image:
    """The image of a source, from the cache unless ``fresh``.

    Raises RecorderUnavailable when bcc, its headers or the compiler refuse.
    """
    name = _cache_name(source)
    if not fresh:
        try:
            return Image.from_json(load_json(name))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
    with _compiling:
        image = _compile(source)
    store_json(name, asdict(image))
    return image


def _cache_name(source: ProbeSource) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(PROBES.glob("*.[ch]")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    facts = [asdict(source), load_bcc().__version__, platform.release(), VERSION]
    digest.update(json.dumps(facts).encode())
    return f"bpf-{digest.hexdigest()}.json"


def _compile(source: ProbeSource) -> Image:
    prepare_headers()
    bcc = load_bcc()
    # bcc compiles in the headers' folder and makes it the working one meanwhile: this thread's
    # alone, or files would be opened, and programs started, there.
    ctypes.CDLL(None).unshare(CLONE_FS)
    try:
        module = bcc.BPF(
            src_file=str(PROBES / source.file).encode(),
            cflags=[f"-I{PROBES}", *(f"-D{name}={value}" for name, value in source.defines)],
        )
    except Exception as error:
        # bcc raises bare Exceptions; what clang said went to stderr.
        raise RecorderUnavailable(
            f"the BPF program cannot be compiled: {str(error).strip() or repr(error)}",
            "qtrace doctor says what is missing",
        ) from error
    try:
        names, maps = {}, {}
        for name in source.maps:
            fd = bcc.lib.bpf_table_fd(module.module, name.encode())
            names[fd], maps[name] = name, _spec(fd)
        code, references = {}, {}
        for function in source.functions:
            raw, references[function] = _unlink(module.dump_func(function.encode()), names)
            code[function] = base64.b64encode(raw).decode()
        layouts = {name: _layout(module, name) for name in RECORDS if name in source.maps}
        return Image(code, maps, references, layouts)
    finally:
        module.cleanup()


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


def _unlink(code: bytes, names: Mapping[int, str]) -> tuple[bytes, list[tuple[int, str]]]:
    """The instructions with their map references taken out, and where these were."""
    raw, references = bytearray(code), []
    for index in range(len(raw) // INSTRUCTION.size):
        opcode, registers, _offset, value = INSTRUCTION.unpack_from(raw, 8 * index)
        if opcode == LD_IMM64 and registers >> 4 == PSEUDO_MAP_FD:
            references.append((index, names[value]))
            struct.pack_into("<i", raw, 8 * index + 4, 0)
    return bytes(raw), references


def _layout(module: Any, name: str) -> Layout:
    """A ring buffer's struct as bcc lays it out: the one definition is the C header's."""
    record = ctypes.create_string_buffer(1 << 17)
    event = type(module[name.encode()].event(ctypes.addressof(record)))
    found = {}
    for field in event._fields_:
        descriptor = getattr(event, field[0])
        found[str(field[0])] = (int(descriptor.offset), int(descriptor.size))
    return found
