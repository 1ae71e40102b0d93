"""The pages of the hunt: what is one finding, and that each hazard is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.lab.hazards import HAZARDS
from qtrace.lab.hunt.cell import Build, Cell, Result
from qtrace.lab.hunt.result_rows import RowFile
from scripts.hunt_page import kind, made

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUILD = Build(Path("/usr/bin/qemu"), "7.2.22", frozenset())


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (
            "SIGABRT at stop: qemu: job.c:379: job_set_aio_context: Assertion `job->paused ||"
            " job_is_completed_locked(job)' failed.. core: SIGABRT ended it in 9 (main)",
            "`` job_set_aio_context: Assertion `job->paused || job_is_completed_locked(job)'"
            " failed ``",
        ),
        (
            "no answer to device_add: /x/lab.qmp: device_add did not come within 5 s. inspect: the"
            " main loop does not run: 30508 (main) waits in drain_call_rcu < qmp_device_add",
            "the main loop waits in `drain_call_rcu`",
        ),
        ("60 of 1,862 reads of a register that is always 0x7 gave another value, the last 0x0",
         "reads of a register gave another value"),
        ("exit status 1 at stop", "exit status N at stop"),
    ],
)  # fmt: skip
def test_cells_that_found_the_same_are_one_line(what: str, found: str) -> None:
    assert kind(what) == found


def test_the_page_counts_the_rows_of_several_files(tmp_path: Path) -> None:
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path, outcome in zip(paths, ("ok", "died"), strict=True):
        with RowFile(path) as rows:
            what = "" if outcome == "ok" else "SIGABRT at stop: f: Assertion `a || b' failed."
            cell = Cell(BUILD, "nvme", "stop", False, "tcg", "h1-00000000")
            rows.add(Result(cell, outcome, what, asked=7))  # type: ignore[arg-type]
    page = made(paths)
    assert "2 cells, 2 of which ran: 14 commands" in page
    assert "1 cells found something" in page
    assert r"| died | `` f: Assertion `a \|\| b' failed `` | 7.2.22 (1) | stop | nvme |" in page


def test_each_hazard_has_its_section_with_proof_and_what_was_searched_for() -> None:
    text = (DOCS / "hazards.md").read_text()
    for name in HAZARDS:
        section = text.partition(f"## `{name}`")[2].partition("\n## ")[0]
        for part in ("*Proof.*", "*Mechanism.*", "*Searched:*"):
            assert part in section, (name, part)
        assert f"| `{name}`" in text
