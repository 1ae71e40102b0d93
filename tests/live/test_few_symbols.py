"""A QEMU that exports nothing, as one built without --enable-modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests import stripped
from tests.live.support.attached import attached, refused, save, watched_half
from tests.live.support.counted import counting_offsets, offset_of, own_copy

# Its accelerators are modules, but for KVM.
pytestmark = [pytest.mark.bpf, pytest.mark.qemu, pytest.mark.kvm]

SAVES = 7


def test_it_is_recorded_by_the_names_in_its_code_and_all_is_refused_aloud(tmp_path: Path) -> None:
    program = find_qemu()
    copy = stripped.without_exports(program, own_copy(program, tmp_path))
    place = ("save_snapshot", offset_of(program, "save_snapshot"))
    with counting_offsets(copy, [place]) as counts, Guest(copy, "kvm") as guest:
        status, said = refused(guest.pid, "--all", "-o", tmp_path / "trace.csv")
        assert (status, "it exports no functions" in said) == (3, True)
        with attached(guest.pid) as attach:
            save(guest, SAVES)
            _status, report, err = attach.end()
    assert "no look can be taken, as this QEMU exports no functions" in err
    half = watched_half(report)
    assert counts["save_snapshot"] == half["scheduled"] == SAVES
    # Whose poll ran it is told by names of functions, which are not there.
    assert half["verdicts"] == {"inconclusive": SAVES}
