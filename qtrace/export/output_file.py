"""A picture's file: whole under its name, or not there; an earlier one stays until then."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from qtrace.errors import OutputFailed
from qtrace.trace.writer import Replacing


def check_suffix(target: Path, suffixes: tuple[str, ...]) -> None:
    """Raises OutputFailed for a name that does not tell the format."""
    if target.suffix not in suffixes:
        raise OutputFailed(
            f"{target} does not end in {' or '.join(suffixes)}", f"name it FILE{suffixes[0]}"
        )


@contextlib.contextmanager
def replacing(target: Path, force: bool) -> Iterator[io.BufferedWriter[io.FileIO]]:
    """The file to write to; when the block fails, what was begun is removed.

    Raises:
        OutputExists, OutputFailed
    """
    output = Replacing(target, force)
    try:
        with output.open() as raw:
            file = io.BufferedWriter(raw, 1 << 20)
            yield file
            file.flush()
        output.settle()
    except OSError as error:
        _drop(output)
        why = error.strerror or str(error)
        raise OutputFailed(
            f"cannot write {target}: {why}", "free some space, or choose another file with -o"
        ) from error
    except BaseException:
        _drop(output)
        raise


def _drop(output: Replacing) -> None:
    output.discard()
    if output.new:
        with contextlib.suppress(OSError):
            output.path.unlink(missing_ok=True)
