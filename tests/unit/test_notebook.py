"""The notebooks run from a recording to the answer, with the Python that runs the tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient.util import run_sync

from scripts.notebooks import ENVIRONMENT, KERNEL, NOTEBOOKS, execute, kernel
from tests.unit.event_rows import recording

Run = Callable[..., list[Any]]

# What each concludes of the samples, and how many pictures lead there.
CONCLUSIONS = {
    "verdict": (1, ["verdict: vcpu-poll", "'main-loop': 12, 'vcpu-poll': 12"]),
    "late-reply": (
        2,
        [
            "stock: finding\n  the reply to snapshot-save came 864 ms after the command was done"
            " (3 times over 100 ms): snapshot_save_job_bh (`main`) ran first, for 864 ms",
            "rerouted: none",
        ],
    ),
    "stranded": (
        1,
        [
            "verdict: stranded\nsnapshot_save_job_bh is stranded in `iohandler`: the only thread",
            "waits in job_finish_sync_locked < job_cancel_sync_all < qemu_cleanup, polling `main`;"
            " job 'job', which it waits for, needs just this bottom half to go on",
        ],
    ),
    "compare-fix": (
        2,
        [
            "stock against rerouted: surely rarer (by chance alone less than 1 in",
            "held against rerouted: surely rarer (by chance alone less than 1 in",
            "nothing new came",
        ],
    ),
    "fleet": (
        1,
        [
            "setting held: vcpu-poll surely more frequent (by chance alone ",
            "setting stock: vcpu-poll surely more frequent (by chance alone 1 in ",
            "27 recordings, 0 of them not read; ",
            " groups, 2 worse than the others",
        ],
    ),
    "event-loop-tour": (
        4,
        [
            "vCPU thread CPU 0/KVM (tid 7698) ran 20,017 bottom halves of the main loop inside",
            "exposure: the race of snapshot_save_job_bh is open",
        ],
    ),
}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncKernelManager]:
    """One kernel for all of them: starting it takes longer than what they do."""
    with kernel(tmp_path_factory.mktemp("kernel")):
        manager = AsyncKernelManager(kernel_name=KERNEL)
        yield manager
        run_sync(manager.shutdown_kernel)(now=True)


@pytest.fixture
def run(manager: AsyncKernelManager) -> Run:
    """Run a notebook on the samples, or on recordings named by variables; nothing is left over
    from the one before."""

    def call(name: str, **variables: Path) -> list[Any]:
        chosen = {variable: str(path) for variable, path in variables.items()}
        forget = [f"os.environ.pop({variable!r}, None)" for variable in ENVIRONMENT]
        first = ["%reset -f", "import os", *forget, f"os.environ.update({chosen!r})", "del os"]
        return list(execute(NOTEBOOKS / f"{name}.ipynb", manager, "\n".join(first)).cells)

    return call


def outputs(cells: list[Any]) -> list[Any]:
    return [output for cell in cells for output in cell.get("outputs", [])]


def pictures(cells: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(cells))


def said(cells: list[Any]) -> str:
    texts = [one.get("text", one.get("data", {}).get("text/plain", "")) for one in outputs(cells)]
    return "\n".join("".join(text) for text in texts)


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_a_notebook_goes_from_its_samples_to_the_conclusion(name: str, run: Run) -> None:
    drawn, conclusion = CONCLUSIONS[name]
    cells = run(name)
    assert pictures(cells) == drawn
    # The last heading's cell is the answer, and nothing follows it.
    assert cells[-2].source.startswith("## The answer")
    for sentence in conclusion:
        assert sentence in said(cells[-1:])
    kept = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    assert said(kept[-1:]) == said(cells[-1:]), "run scripts.notebooks: what is kept is old"


def test_every_notebook_has_its_conclusion_tested() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(CONCLUSIONS)


@pytest.mark.parametrize("name", sorted(CONCLUSIONS.keys() - {"compare-fix", "fleet"}))
def test_a_notebook_holds_for_a_recording_without_events(
    name: str, tmp_path: Path, run: Run
) -> None:
    recording(tmp_path / "t.csv")
    text = said(run(name, QTRACE_TRACE=tmp_path / "t.csv"))
    assert "vcpu-poll" not in text


def test_a_comparison_of_recordings_without_events_says_so(tmp_path: Path, run: Run) -> None:
    for name in ("a.csv", "b.csv"):
        recording(tmp_path / name)
    text = said(
        run("compare-fix", QTRACE_BEFORE=tmp_path / "a.csv", QTRACE_AFTER=tmp_path / "b.csv")
    )
    assert "before against after: nothing to count" in text


def test_many_recordings_without_events_differ_in_nothing(tmp_path: Path, run: Run) -> None:
    for name in ("a-1.csv", "b-2.csv"):
        recording(tmp_path / name)
    text = said(run("fleet", QTRACE_FLEET=tmp_path))
    assert "1 recordings, 0 of them not read; 1 groups, 0 worse than the others" in text


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_notebooks_are_kept_executed_and_name_no_place_of_a_machine(name: str) -> None:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert pictures(code) == CONCLUSIONS[name][0]
    assert not any(output["output_type"] == "error" for output in outputs(code))
    for cell in code:
        for output in cell["outputs"]:
            output.get("data", {}).pop("image/png", None)
    assert not re.search(r"/(home|root|tmp|work|Users)/| at 0x[0-9a-f]+>", json.dumps(cells))
