"""The laboratory makes every recording of analysis/samples again."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from qtrace.analysis import judge
from scripts.samples.machine import NEW, ROOT, UNPACKED

pytestmark = [pytest.mark.bpf, pytest.mark.gdb, pytest.mark.qemu, pytest.mark.kvm, pytest.mark.soak]

LABELS = tomllib.loads((ROOT / "analysis/samples/labels.toml").read_text())


@pytest.mark.timeout(1800)
def test_samples_made_again_show_what_their_labels_say(tmp_path: Path) -> None:
    """The same verdicts, in the same numbers where they were forced by count."""
    if not UNPACKED.exists():
        pytest.skip("make qemus")
    subprocess.run([sys.executable, "-m", "scripts.samples", "-o", tmp_path], check=True, cwd=ROOT)
    assert not NEW.exists()
    assert {path.name for path in tmp_path.iterdir()} == set(LABELS)
    for name, label in LABELS.items():
        report = judge(tmp_path / name)
        found = {half["name"]: half["verdicts"] for half in report["bottom_halves"]}
        assert found.keys() == label["verdicts"].keys(), name
        assert len(report["stuck"]) == label.get("stuck", 0), name
        either = label.get("either", [])
        for half, verdicts in label["verdicts"].items():
            assert verdicts.keys() <= found[half].keys() <= verdicts.keys() | set(either), name
            if label["forced"] and "stranded" not in name:
                assert together(found[half], either) == together(verdicts, either), name
        assert (report["complete"], report["lost_events"]) == (True, 0), name


def together(verdicts: dict[str, int], either: Sequence[str]) -> dict[str, int]:
    """The counts, those left to chance as one."""
    counts = {verdict: n for verdict, n in verdicts.items() if verdict not in either}
    return counts | {"either": sum(verdicts.get(verdict, 0) for verdict in either)}
