"""The distribution's ``bcc`` module, from inside any virtual environment.

The BPF Compiler Collection's Python package belongs to the distribution's libbcc and is not
on PyPI; what PyPI calls ``bcc`` is another program.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from qtrace.errors import RecorderUnavailable

REMEDY = "apt-get install python3-bpfcc (elsewhere: the package of bcc's Python bindings)"
SYSTEM_PYTHON = "/usr/bin/python3"
PATTERNS = (
    "lib/python3*/dist-packages/bcc",
    "lib/python3*/site-packages/bcc",
    "lib64/python3*/site-packages/bcc",
)
PREFIXES = (Path("/usr"), Path("/usr/local"))


# Half an import is no module yet for the thread that compiles ahead.
_loading = threading.Lock()


def load_bcc() -> ModuleType:
    """Import ``bcc`` and nothing else of the distribution's packages; ``sys.path`` stays as it is.

    Raises:
        RecorderUnavailable: not installed, PyPI's program of that name, or its library
            cannot be loaded.
    """
    with _loading:
        return _load_bcc()


@cache
def _load_bcc() -> ModuleType:
    loaded = sys.modules.get("bcc")
    if loaded is not None:
        if not is_bpf_compiler(Path(loaded.__file__ or "").parent):
            raise _another_program(Path(loaded.__file__ or "bcc"))
        return loaded
    folder = find_bcc()
    spec = importlib.util.spec_from_file_location(
        "bcc", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise RecorderUnavailable(f"{folder} is no Python package", REMEDY)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, AttributeError) as error:
        for name in [n for n in sys.modules if n == "bcc" or n.startswith("bcc.")]:
            del sys.modules[name]
        # OSError: libbcc.so is missing; AttributeError: it is older than the package.
        raise RecorderUnavailable(f"bcc in {folder} cannot be loaded: {error}", REMEDY) from error
    return module


def find_bcc() -> Path:
    """The package's folder. Raises RecorderUnavailable when there is none but PyPI's."""
    another: Path | None = None
    for folder in _candidates():
        if is_bpf_compiler(folder):
            return folder
        another = another or folder
    if another is not None:
        raise _another_program(another)
    raise RecorderUnavailable(
        "the BPF Compiler Collection's Python package (bcc) is not installed", REMEDY
    )


def is_bpf_compiler(folder: Path) -> bool:
    """Whether this is bcc's package: the one that wraps libbcc."""
    return (folder / "__init__.py").is_file() and (folder / "libbcc.py").is_file()


def _another_program(where: Path) -> RecorderUnavailable:
    return RecorderUnavailable(
        f"{where} is another program, not the BPF Compiler Collection",
        f"{REMEDY}; PyPI's bcc can be removed with: pip uninstall bcc",
    )


def _candidates() -> Iterator[Path]:
    """Folders named ``bcc``, the cheapest to find first."""
    for prefix in PREFIXES:
        for pattern in PATTERNS:
            yield from sorted(p for p in prefix.glob(pattern) if p.is_dir())
    # This environment's own path: system packages let in, or PyPI's.
    spec = importlib.util.find_spec("bcc")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    # A distribution that keeps it elsewhere: its own Python knows.
    code = "import importlib.util as u; s = u.find_spec('bcc'); print(s.origin if s else '')"
    try:
        asked = subprocess.run(
            [SYSTEM_PYTHON, "-I", "-c", code], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if origin := asked.stdout.strip():
        yield Path(origin).parent
