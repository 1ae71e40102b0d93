"""`qtrace replay` without a terminal: one moment, as text. (On one: tests/pictures.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.called import Call, calling
from tests.unit.event_rows import NAME, attach, detach, recording, run_on_vcpu, schedule, write

SAMPLES = Path(__file__).parents[2] / "analysis/samples"


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling("replay", monkeypatch, capsys)


def test_at_a_finding_it_tells_what_was_pending_and_what_is_wrong(
    replay: Call, tmp_path: Path
) -> None:
    path = tmp_path / "trace.csv"
    recording(path, schedule(1_000_000), run_on_vcpu(5_000_000))
    done = replay(path, "--finding", "1")
    assert done.returncode == 0, done.stderr
    assert "vcpu-poll: " in done.stdout
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("pending"))
    assert lines[at + 1].startswith(NAME)
    assert lines[at + 1].split()[-2:] == ["0", "ns"]


def test_a_place_beyond_the_end_is_its_end(replay: Call, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    recording(path, schedule(1_000_000), run_on_vcpu(5_000_000))
    done = replay(path, "--at", "10h")
    assert done.returncode == 0
    assert "\n1.000000 s of 1.000000 s\n" in done.stdout


def test_an_empty_recording_is_played_too(replay: Call, tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    write(path, [attach(), detach(2_000)])
    done = replay(path)
    assert done.returncode == 0, done.stderr
    assert "pending" not in done.stdout or "context" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--finding", "99"), " findings"),
        (("--at", "1s", "--finding", "1"), "begin at one place"),
        (("--speed", "0"), "0"),
    ],
)
def test_what_cannot_be_meant_is_told(
    replay: Call, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "trace.csv"
    recording(path, schedule(1_000_000), run_on_vcpu(5_000_000))
    done = replay(path, *options)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_what_is_no_trace_is_told(replay: Call, tmp_path: Path) -> None:
    path = tmp_path / "no.csv"
    path.write_text("no trace")
    assert replay(path).returncode == 3
