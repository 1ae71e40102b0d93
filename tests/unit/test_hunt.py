"""Which cells a hunt has, and what its guest and its rows are made of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qtrace.errors import LabFailed, QtraceError
from qtrace.lab.firmware import CHIP_BYTES
from qtrace.lab.hunt import guest_program, hunting
from qtrace.lab.hunt.cell import Build, Cell, Result, processes_of
from qtrace.lab.hunt.cell_plan import NothingToHunt, plan
from qtrace.lab.hunt.devices import DEVICES
from qtrace.lab.hunt.guest_program import Program
from qtrace.lab.hunt.result_rows import RowFile, count

BUILD = Build(Path("/usr/bin/qemu"), "7.2.22", frozenset({"virtio-blk-pci", "nvme"}))
OTHER = Build(Path("/opt/qemu"), "10.0.2", frozenset({"virtio-blk-pci"}))


def cell(device: str = "virtio-blk", seed: str = "h1-00000001") -> Cell:
    return Cell(BUILD, device, "commit", False, "tcg", seed)


def names(*builds: Build, **chosen: object) -> list[str]:
    return [one.name for one in plan(builds, accels=("tcg",), **chosen)]  # type: ignore[arg-type]


def test_a_hunt_is_every_device_with_every_command_and_a_glob_means_several() -> None:
    cells = plan([BUILD], ["virtio-blk*", "nvme"], ["commit", "mirror"], accels=("tcg",))
    own = {(one.device, one.command, one.iothread) for one in cells}
    assert ("nvme", "commit", False) in own
    assert ("nvme", "commit", True) not in own, "it has no IOThread"
    assert ("virtio-blk-once", "mirror", True) in own
    assert len(own) == len(cells)


def test_the_same_seed_gives_the_same_cells_in_the_same_order() -> None:
    assert names(BUILD, seed="7") == names(BUILD, seed="7")
    assert names(BUILD, seed="7") != names(BUILD, seed="8")


def test_a_cell_has_the_same_seed_on_every_build_and_is_repeated_by_it() -> None:
    one, other = plan([BUILD, OTHER], ["nvme"], ["commit"], (False,), ("tcg",))
    assert one.seed == other.seed
    (again,) = plan([BUILD], ["nvme"], ["commit"], (False,), ("tcg",), seed=one.seed)
    assert again.seed == one.seed


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"devices": ["nvmee"]}, "no device matches 'nvmee'"),
        ({"commands": ["x*"]}, "no command matches 'x*'"),
        ({"seed": "h0-00000001"}, "of another version"),
        ({"devices": ["nvme"], "iothreads": (True,)}, "none of these devices can have an IOThread"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(chosen: dict[str, object], says: str) -> None:
    with pytest.raises(NothingToHunt) as refused:
        names(BUILD, **chosen)
    assert isinstance(refused.value, QtraceError)
    assert says in refused.value.message


def test_what_a_build_lacks_of_a_device_is_named() -> None:
    assert cell("virtio-scsi").missing == ["virtio-scsi-pci", "scsi-hd"]
    assert cell("nvme").missing == []


def test_every_device_has_a_routine_of_the_guest_and_fits_its_chip() -> None:
    for device in DEVICES.values():
        image = device.program.image()
        assert len(image) == CHIP_BYTES
        begin = CHIP_BYTES - (0x1_0000_0000 - guest_program.LINK_ADDRESS) + guest_program.CONFIG_AT
        words = image[begin : begin + 4]
        routine = guest_program.ROUTINES[int.from_bytes(words, "little")]
        assert routine == device.program.routine


def test_rebuilding_gives_the_shipped_bytes() -> None:
    for tool in ("gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: apt install gcc binutils")
    assert guest_program.build() == guest_program.SHIPPED.read_bytes()


def test_what_the_guest_counted_is_read_from_its_memory(tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    words = (5, 100, 2, 0, 0xBEEF, 7, 1, 0x55)
    ram.write_bytes(
        bytes(guest_program.RESULTS_AT) + b"".join(w.to_bytes(4, "little") for w in words)
    )
    found = guest_program.read_results(ram)
    assert (found.rounds, found.checked, found.wrong, found.first) == (5, 100, 2, 0xBEEF)
    assert (found.verified, found.corrupt, found.last_corrupt) == (7, 1, 0x55)


def test_an_unknown_routine_is_no_program() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        Program("nosuch").image()


def test_the_worst_that_was_seen_is_the_outcome_and_all_of_it_is_told() -> None:
    result = Result(cell())
    result.note("left-behind", "a request")
    result.note("died", "SIGABRT")
    result.note("lied", "a read")
    assert result.outcome == "died"
    assert result.what == "SIGABRT; a request; a read"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_there_as_they_come_and_what_qemu_wrote_is_escaped(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"rows{suffix}"
    result = Result(cell(), "died", "SIGABRT", said="\x1b[2Joops")
    with RowFile(path) as rows:
        rows.add(result)
        (growing,) = tmp_path.glob("*.csv")
        assert "SIGABRT" in growing.read_text()
    if suffix == ".parquet":
        (row,) = pq.read_table(path).to_pylist()
        assert (row["outcome"], row["said"]) == ("died", r"\x1b[2Joops")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_outcomes_are_counted_the_worst_first() -> None:
    results = [Result(cell()), Result(cell(), "hung"), Result(cell(), "died"), Result(cell("nvme"))]
    assert list(count(results, "device").items()) == [
        ("nvme", {"ok": 1}), ("virtio-blk", {"died": 1, "hung": 1, "ok": 1}),
    ]  # fmt: skip
    assert list(count(results, "device")["virtio-blk"]) == ["died", "hung", "ok"]


def test_processes_that_a_guest_has_left_are_found_by_their_group() -> None:
    with subprocess.Popen(["sleep", "60"], process_group=0) as left:
        try:
            assert processes_of(left.pid) == [left.pid]
        finally:
            left.kill()
    assert processes_of(left.pid) == []


def test_a_cell_does_not_begin_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as no disk has is wanted of it."""
    monkeypatch.setattr(hunting, "RESERVE_BYTES", 1 << 62)
    with pytest.raises(LabFailed, match="MiB left"):
        hunting.check_disk(tmp_path)
    monkeypatch.setattr(hunting, "RESERVE_BYTES", 1)
    hunting.check_disk(tmp_path)
