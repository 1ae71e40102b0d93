"""The compiled BPF programs that come with qtrace: of these sources, whole, and filled in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtrace.errors import RecorderUnavailable
from qtrace.machine.arch_aarch64 import AARCH64
from qtrace.record.ebpf import bcc_module, bpf_image
from qtrace.record.ebpf.bpf_compiler import compile_image, compiler
from qtrace.record.ebpf.bpf_image import (
    AT_TRACEPOINTS,
    INSTRUCTION,
    PREBUILT,
    PROGRAMS,
    NoImage,
    get_image,
    read_prebuilt,
    unpack,
)

ROOT = Path(__file__).resolve().parents[2]


def test_it_was_compiled_from_the_sources_that_are_here() -> None:
    """Whoever changes a file of probes/ runs `make probes`."""
    assert set(read_prebuilt()) == set(PROGRAMS)
    for file, (functions, maps) in PROGRAMS.items():
        image = read_prebuilt()[file]
        assert (tuple(image.functions), tuple(image.maps)) == (functions, maps)


@pytest.mark.parametrize("file", [file for file in PROGRAMS if file not in AT_TRACEPOINTS])
def test_every_function_counts_what_it_loses(file: str) -> None:
    """Of a header that bcc includes itself, clang leaves the calls on maps out and says nothing."""
    for name, function in read_prebuilt()[file].functions.items():
        assert {"lost", "recording"} <= {to for _at, to in function.references}, name


@pytest.mark.bcc
@pytest.mark.parametrize("file", PROGRAMS)
def test_compiled_anew_it_is_the_same(file: str) -> None:
    made_by = json.loads(PREBUILT.read_bytes())["compiled_by"]
    if compiler() != made_by:
        pytest.skip(f"it was made by {made_by}, here is {compiler()}")
    assert compile_image(file) == read_prebuilt()[file]


def test_every_hole_takes_what_fills_it_and_nothing_else_changes() -> None:
    enqueue = read_prebuilt()["all.bpf.c"].functions["enqueue"]
    maps = {name: 100 + number for number, (_at, name) in enumerate(enqueue.references)}
    filling = {hole.name: 1000 + hole.index for hole in enqueue.holes}
    filled = enqueue.filled(maps, filling)
    holes = {hole.index: hole for hole in enqueue.holes}
    for index, (before, after) in enumerate(
        zip(INSTRUCTION.iter_unpack(enqueue.code), INSTRUCTION.iter_unpack(filled), strict=True)
    ):
        opcode, registers, offset, immediate = before
        if hole := holes.get(index):
            value = filling[hole.name]
            offset, immediate = (0, value) if hole.kind == "number" else (value, 0)
        immediate = next((maps[name] for at, name in enqueue.references if at == index), immediate)
        assert after == (opcode, registers, offset, immediate)


def test_a_hole_without_filling_is_never_loaded() -> None:
    run = read_prebuilt()["all.bpf.c"].functions["run"]
    with pytest.raises(KeyError):
        run.filled(dict.fromkeys((name for _at, name in run.references), 3), {})


def of_other_sources(data: dict[str, Any]) -> None:
    data["sources"] = "0" * 32


def with_another_instruction(data: dict[str, Any]) -> None:
    run = data["programs"]["all.bpf.c"]["functions"]["run"]
    run["code"] = "A" + run["code"][1:] if run["code"][0] != "A" else "B" + run["code"][1:]


def without_a_function(data: dict[str, Any]) -> None:
    del data["programs"]["all.bpf.c"]["functions"]["run"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (of_other_sources, "are of other sources than probes/"),
        (with_another_instruction, "are damaged"),
        (without_a_function, "are damaged"),
        (dict.clear, "are damaged"),
    ],
    ids=["other sources", "another instruction", "a function less", "empty"],
)
def test_what_is_not_of_these_sources_is_never_loaded(
    spoil: Callable[[dict[str, Any]], None], why: str
) -> None:
    data = json.loads(PREBUILT.read_bytes())
    spoil(data)
    with pytest.raises(NoImage, match=why):
        unpack(data)


@pytest.mark.parametrize("damaged", [b"", b"[]", b"null", b'{"programs": 1}', b"\xff\xfe"])
def test_a_damaged_file_without_a_compiler_says_both_and_how_to_mend_it(
    damaged: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prebuilt.json").write_bytes(damaged)
    monkeypatch.setattr(bpf_image, "PREBUILT", tmp_path / "prebuilt.json")
    hide_bcc(monkeypatch)
    read_prebuilt.cache_clear()
    try:
        with pytest.raises(RecorderUnavailable) as refused:
            get_image("watch.bpf.c")
    finally:
        read_prebuilt.cache_clear()
    assert refused.value.message.startswith("the prebuilt probes are damaged, and ")
    assert "bcc" in refused.value.message
    assert refused.value.remedy.startswith("install qtrace again, or apt-get install")


def hide_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcc_module, "PREFIXES", (Path("/nonexistent"),))
    monkeypatch.setattr(bcc_module, "SYSTEM_PYTHON", "/nonexistent")
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    bcc_module._load_bcc.cache_clear()


CHANGED = """
from qtrace.record.ebpf import bpf_image
from qtrace.record.ebpf.bpf_program import load_watch
program = load_watch(1, 1)
print(program.note, "|", sorted(program.functions) == sorted(bpf_image.PROGRAMS["watch.bpf.c"][0]))
"""


def test_on_another_processor_the_prebuilt_image_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its registers lie elsewhere in pt_regs: each would be read as another."""
    compiled = read_prebuilt()["all.bpf.c"]
    monkeypatch.setattr(bpf_image, "HOST", AARCH64)
    monkeypatch.setattr(bpf_image, "_compiled", lambda _file: compiled)
    image, note = get_image("all.bpf.c")
    assert image is compiled
    assert note == "the prebuilt probes are for x86-64 hosts: compiled instead"


@pytest.mark.bcc
@pytest.mark.bpf
def test_changed_sources_are_compiled_and_kept_and_said(tmp_path: Path) -> None:
    for folder in ("qtrace", "probes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    header = tmp_path / "probes/event.h"
    header.write_text(header.read_text() + "/* another */\n")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", CHANGED], cwd=tmp_path, env=environment, text=True,
            capture_output=True, check=True,
        ).stdout
        for _ in range(2)
    ]  # fmt: skip
    why = "the prebuilt probes are of other sources than probes/: compiled instead"
    assert said == [f"{why} | True\n"] * 2
    assert len(list(tmp_path.glob("cache/qtrace/bpf-*.json"))) == 1
