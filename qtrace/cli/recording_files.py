"""Where a recording grows, and the trace that it becomes."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from types import TracebackType

import click

from qtrace.host.privileges import may_read_without
from qtrace.trace.schema import escape
from qtrace.trace.writer import check_kind, check_output


class Files:
    """Rows are written as CSV, so that they outlive a kill; `--all` as a raw file. Parquet, and
    the rows of a raw file, are made at the end.

    A context manager: whoever breaks it off is told what is there, and how to go on from it.

    Attributes:
        output: what was asked for; None where the trace is for the verdict alone.
        growing: what is recorded to.
    """

    def __init__(self, output: Path | None, force: bool, everything: bool, folder: Path) -> None:
        """``folder`` is for what is not kept. Raises OutputExists, OutputFailed."""
        self.output, self._force = output, force
        self._final = output or folder / ("trace.parquet" if everything else "trace.csv")
        self.growing = self._final
        # An earlier recording's, which a new one replaces.
        self._earlier = _inode(self._final)
        converted = everything or self._final.suffix == ".parquet"
        # What is neither file nor free is a device, a pipe, or a folder, which is told as such.
        if converted or self._final.is_file() or not self._final.exists():
            check_kind(self._final)
        if converted:
            check_output(self._final, force)
            suffix = "raw" if everything else "partial.csv"
            self.growing = self._final.with_name(f"{self._final.name}.{suffix}")

    def needs(self) -> tuple[str, ...]:
        """The capabilities that it takes to make files there (root's, in somebody else's folder),
        and to import what judges them (a Python, or a checkout, in a closed home folder)."""
        needed = []
        if os.geteuid() == 0 and self._final.parent.exists():
            needed += ["CAP_DAC_OVERRIDE"] if self._final.parent.stat().st_uid else []
        if not all(map(may_read_without, filter(os.path.isdir, sys.path))):
            needed.append("CAP_DAC_READ_SEARCH")
        return tuple(needed)

    def settle(self) -> Path:
        """Give the trace its form. What was recorded stays until that has succeeded."""
        if self.growing == self._final:
            return self._final
        from qtrace.cli.progress import converting
        from qtrace.trace.convert import convert

        with converting(self.growing.name) as progress:
            convert(self.growing, self._final, self._force, progress)
        self.growing.unlink()
        return self._final

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._tell()

    def _tell(self) -> None:
        force = ["--force"] if self._force else []
        if self.output is None:
            text = "nothing was kept, as there is no -o"
        elif self.growing != self._final and self.growing.is_file():
            how = shlex.join(["qtrace", "convert", *force, str(self.growing), str(self._final)])
            text = f"{self.growing} holds all that was recorded; the trace is made by: {how}"
        elif _inode(self._final) not in (0, self._earlier):
            how = shlex.join(["qtrace", "analyze", str(self._final)])
            text = f"{self._final} is the trace; the verdict is given by: {how}"
        else:
            return
        click.echo(f"warning: broken off: {escape(text)}", err=True)


def _inode(path: Path) -> int:
    """Of a file, 0 where there is none."""
    return path.stat().st_ino if path.is_file() else 0
