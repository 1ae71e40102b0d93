"""Run the notebooks of analysis/notebooks and keep what they show, and the README's picture.

From the top of the tree: ``.venv/bin/python -m scripts.notebooks [NAME...]``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from qtrace.analysis import open_traces
from qtrace.analysis.pictures import swim_lanes

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "analysis" / "notebooks"
PICTURE, SHOWS = ROOT / "docs" / "vcpu-poll.png", "all-pflash-7.2-kvm.parquet"
KERNEL = "qtrace-notebooks"
LIMIT_S = 120
# What a user of the notebooks may have set, and must not decide what is kept.
ENVIRONMENT = ("QTRACE_TRACE", "QTRACE_BEFORE", "QTRACE_AFTER", "QTRACE_FLEET", "QTRACE_BY")


@contextmanager
def kernel(folder: Path) -> Iterator[None]:
    """A kernel of this interpreter that knows this tree, installed nowhere but in ``folder``."""
    spec = folder / "jupyter" / "kernels" / KERNEL
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    facts = {"argv": command, "display_name": "qtrace", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(facts))
    changes = {"JUPYTER_PATH": str(folder / "jupyter")}
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        changes[name] = str(folder / name)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    changes["PYTHONPATH"] = os.pathsep.join(path)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def execute(path: Path, manager: AsyncKernelManager | None = None, first: str = "") -> Any:
    """A notebook with what its cells show, run inside ``kernel``; its file stays as it is.

    Args:
        manager: of a kernel that runs already, and goes on; else one is started, and ended.
        first: code to run before, which is not part of the notebook.
    """
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    before = [nbformat.v4.new_code_cell(first)] if first else []  # type: ignore[no-untyped-call]
    notebook.cells = before + notebook.cells
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, km=manager, kernel_name=KERNEL, timeout=LIMIT_S, resources=folder
    )
    client.execute()
    notebook.cells = notebook.cells[len(before) :]
    return notebook


def keep(path: Path) -> None:
    """Write what it shows into its file, and nothing that tells of this machine."""
    notebook = execute(path)
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{path.stem}-{number}", {}
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


def main(names: list[str]) -> None:
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder, kernel(Path(folder)):
        for path in paths:
            keep(path)
            print(f"{path.name}: {path.stat().st_size:,} bytes")
    figure = swim_lanes(open_traces(ROOT / "analysis" / "samples" / SHOWS)[0])
    figure.savefig(PICTURE, dpi=90, metadata={"Software": None})
    print(f"{PICTURE.name}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
