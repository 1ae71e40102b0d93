"""The notebooks run from a recording to the answer, with the Python that runs the tests."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.unit.event_rows import recording

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "analysis" / "notebooks"


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook on a trace in a kernel of this interpreter, installed nowhere."""
    kernel = tmp_path / "jupyter" / "kernels" / "qtrace-test"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "qtrace", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    def call(name: str, trace: Path | None = None) -> list[Any]:
        monkeypatch.delenv("QTRACE_TRACE", raising=False)
        if trace is not None:
            monkeypatch.setenv("QTRACE_TRACE", str(trace))
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)  # type: ignore[no-untyped-call]
        client = NotebookClient(
            notebook,
            kernel_name="qtrace-test",
            timeout=60,
            resources={"metadata": {"path": str(NOTEBOOKS)}},
        )
        client.execute()
        return [output for cell in notebook.cells for output in cell.get("outputs", [])]

    return call


def pictures(outputs: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def texts(outputs: list[Any]) -> str:
    return "\n".join(
        str(output.get("text") or output.get("data", {}).get("text/plain")) for output in outputs
    )


def test_verdict_goes_from_a_recording_to_the_answer(execute: Any) -> None:
    outputs = execute("verdict.ipynb")
    assert pictures(outputs) == 1
    text = texts(outputs)
    assert "verdict: vcpu-poll" in text
    assert "memory_region_dispatch_write" in text
    assert "'main-loop': 12, 'vcpu-poll': 12" in text


def test_verdict_holds_for_a_recording_without_events(tmp_path: Path, execute: Any) -> None:
    recording(tmp_path / "t.csv")
    assert "verdict: not-seen" in texts(execute("verdict.ipynb", tmp_path / "t.csv"))


@pytest.mark.parametrize("path", NOTEBOOKS.glob("*.ipynb"), ids=lambda path: path.stem)
def test_notebooks_are_kept_executed_and_name_no_place_of_a_machine(path: Path) -> None:
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert pictures(outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    said = [output.get("text", output.get("data", {}).get("text/plain")) for output in outputs]
    assert not re.search(r"/(home|root|tmp|work|Users)/| at 0x[0-9a-f]+>", json.dumps(said))
