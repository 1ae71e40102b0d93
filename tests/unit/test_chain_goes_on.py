"""A recorder goes on while its recording is read, twice: it writes, and lets the oldest file go."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.analysis import Trace, traces
from qtrace.analysis.report import judge_opened
from qtrace.analysis.slices import Outlined, Sliced
from qtrace.errors import TraceUnreadable
from qtrace.trace.chain import file_of
from qtrace.trace.outline import parts_of
from tests.unit.called import calling
from tests.unit.chains import as_csv, cut
from tests.unit.test_slices import SAMPLES, report


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    (tmp_path / "whole").mkdir()
    whole = as_csv(SAMPLES / "vcpu-poll-7.2-tcg.csv", tmp_path / "whole")
    return cut(whole, tmp_path, [20, 60, 100])


def test_a_file_that_went_between_two_readings_is_told(chain: Path) -> None:
    sliced = Sliced.of(chain, rows=10)
    assert sliced is not None
    file_of(chain, 1).unlink()
    with pytest.raises(TraceUnreadable, match=r"00001\.csv went while its chain was read") as error:
        report(Outlined(sliced))
    assert "when the recording has ended" in error.value.remedy


@pytest.mark.parametrize("name", ["analyze", "explain", "export", "report"])
def test_each_command_tells_it_in_a_line(
    name: str, chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = Sliced.of

    def of(path: Path, *args: object, **more: object) -> Sliced | None:
        found = read(path, *args, **more)  # type: ignore[arg-type]
        file_of(chain, 1).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(traces, "LONG", 10)
    monkeypatch.setattr(Sliced, "of", of)
    output = {"export": "x.pftrace", "report": "x.html"}.get(name)
    more = [] if output is None else ["-o", chain.with_name(output)]
    done = calling(name, monkeypatch, capsys)(file_of(chain, 2), *more)
    assert (done.returncode, done.stdout) == (3, "")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line.split(":")[0] for line in errors] == ["error", "remedy"]
    assert output is None or not chain.with_name(output).exists()


def test_what_was_written_since_is_left_out(chain: Path) -> None:
    last = file_of(chain, 4).read_bytes()
    lines = last.splitlines(keepends=True)
    # Its first half was there when it was read first; what came then is older, in part.
    file_of(chain, 4).write_bytes(b"".join(lines[:30]))
    before = judge_opened([Trace(chain)], lints=None)
    sliced = Sliced.of(chain, rows=10)
    assert sliced is not None
    file_of(chain, 4).write_bytes(b"".join([*lines[:30], *reversed(lines[30:])]))
    rows = [len(arrays["row"]) for _columns, arrays in parts_of(sliced.file)]
    assert sliced.file.read is not None
    assert sum(rows) == sliced.file.read.rows
    found = judge_opened([Trace(chain)], lints=None)
    assert report(Outlined(sliced))["verdict"] == before["verdict"]
    assert (before["complete"], found["complete"]) == (False, True)
