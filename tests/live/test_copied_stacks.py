"""Stacks that were unwound before, and of which less is copied: the same frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest
from qtrace.process.hit import Hit
from qtrace.record.ebpf import ebpf_recorder as ebpf
from qtrace.record.hit_stacks import MUCH, WORD, Stacks
from qtrace.record.recording import Recording
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from tests.live.support.attached import save

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ROUNDS = 40


def test_frames_are_the_same_whether_a_chain_was_met_before_or_not(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    with (
        Guest(qemu_binary, accel) as guest,
        start_recording(
            guest.pid, RecordingOptions(tmp_path / "t.csv", patterns=["*job*"])
        ) as recording,
    ):
        save(guest, ROUNDS)
        hits = with_stacks(recording)
        unwinder = recording.qemu.unwinder
        often = Stacks(unwinder)
        assert [often.frames(hit) for hit in hits] == [Stacks(unwinder).frames(h) for h in hits]
    assert len(hits) > 3 * ROUNDS
    assert sum(len(kept) for kept in often._known.values()) < len(hits) / 2


def test_no_more_is_copied_of_a_stack_than_up_to_its_outermost_frame(
    tmp_path: Path, qemu_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of any other thread: the kernel tells where the main one's stack begins.
    monkeypatch.setattr(ebpf, "main_stack", lambda pid: 0)
    # Right above the outermost frame lies the array of pointers to the environment, and is long
    # here. Above that the kernel leaves a random gap (arch_align_stack()), which may be a page that
    # nobody has touched: no copy goes beyond it.
    for number in range(2 * MUCH // WORD):
        monkeypatch.setenv(f"FILLS_THE_STACK_{number}", "")
    with (
        Guest(qemu_binary, firmware="idle") as guest,
        start_recording(guest.pid, RecordingOptions(tmp_path / "t.csv")) as recording,
    ):
        recording.poll(0)
        save(guest, 1)
        before = with_stacks(recording)
        recording._take(before)
        save(guest, 1)
        after = with_stacks(recording)
        whole = Stacks(recording.qemu.unwinder)
        runs = [[h for h in hits if is_run(recording, h)] for hits in (before, after)]
        (first,), (second,) = runs
        assert whole.frames(first) == whole.frames(second)
    assert len(first.stack) > MUCH
    assert len(second.stack) < MUCH
    assert whole.frames(second)[0].startswith("_start")


def with_stacks(recording: Recording) -> list[Hit]:
    hits = recording._probes.drain()
    return [hit for hit in hits if not recording._rows._sites[hit.address].is_step]


def is_run(recording: Recording, hit: Hit) -> bool:
    return recording._rows._sites[hit.address].kind == "run"
