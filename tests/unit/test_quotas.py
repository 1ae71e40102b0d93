"""What a cgroup's quota of processor time did, of both versions, as its files tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qtrace.host.cgroups import Cgroups
from qtrace.host.quotas import HeldBack, Quotas

FILES = {True: {"cpu.max": "20000 100000"},
         False: {"cpu.cfs_quota_us": "20000", "cpu.cfs_period_us": "100000"}}  # fmt: skip
UNLIMITED = {True: {"cpu.max": "max 100000"},
             False: {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}  # fmt: skip


def quotas(monkeypatch: pytest.MonkeyPatch, folder: Path, is_v2: bool) -> Quotas:
    def around(_self: Cgroups, text: str) -> Iterator[tuple[str, Path, bool]]:
        yield text, folder, is_v2

    monkeypatch.setattr(Cgroups, "around", around)
    return Quotas(["/vm", "/vm"])


def write(folder: Path, files: dict[str, str], periods: int = 0, times: int = 0) -> None:
    counts = f"nr_periods {periods}\nnr_throttled {times}\nthrottled_usec 5"
    for name, text in {**files, "cpu.stat": counts}.items():
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize("is_v2", [True, False])
def test_what_it_did_since_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_v2: bool
) -> None:
    write(tmp_path, FILES[is_v2], 10, 3)
    own = quotas(monkeypatch, tmp_path, is_v2)
    assert own.held_back() == []
    write(tmp_path, FILES[is_v2], 30, 18)
    setting = "cpu.max" if is_v2 else "cpu.cfs_quota_us"
    assert own.held_back() == [HeldBack("/vm", setting, 0.2, 100_000_000, 20, 15)]


@pytest.mark.parametrize("is_v2", [True, False])
def test_a_cgroup_without_one_holds_nobody_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_v2: bool
) -> None:
    write(tmp_path, UNLIMITED[is_v2])
    own = quotas(monkeypatch, tmp_path, is_v2)
    write(tmp_path, UNLIMITED[is_v2], 20, 20)
    assert own.held_back() == []


@pytest.mark.parametrize("damage", ["", "\n", "max", "0 100000", "-1 -1", "20000 0"])
def test_what_cannot_be_read_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "cpu.max").write_text(damage)
    assert quotas(monkeypatch, tmp_path, True).held_back() == []
    assert quotas(monkeypatch, tmp_path / "gone", True).held_back() == []
