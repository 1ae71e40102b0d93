"""Where a recording grows, and the trace that it becomes."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from types import TracebackType

import click

from qtrace.errors import OutputExists
from qtrace.host.privileges import may_read_without
from qtrace.trace.chain import file_of, files_of
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

    def __init__(
        self, output: Path | None, force: bool, everything: bool, folder: Path, chain: bool = False
    ) -> None:
        """``folder`` is for what is not kept; ``chain``: both are what a chain of files is called.

        Raises:
            OutputExists, OutputFailed
        """
        self.output, self._force, self._chain = output, force, chain
        self._final = output or folder / ("trace.parquet" if everything else "trace.csv")
        self.growing = self._final
        # An earlier recording's, which a new one replaces.
        self._earlier = _inode(self._final)
        converted = everything or self._final.suffix == ".parquet"
        # What is neither file nor free is a device, a pipe, or a folder, which is told as such.
        if converted or chain or self._final.is_file() or not self._final.exists():
            check_kind(self._final)
        if converted or chain:
            check_output(self._final, force)
        if converted:
            suffix = "raw" if everything else "partial.csv"
            self.growing = self._final.with_name(f"{self._final.name}.{suffix}")
        if chain:
            self._make_room()

    def _make_room(self) -> None:
        """No file of an earlier chain may stand beside those of a new one, nor have its name.

        Raises:
            OutputExists: there is one, and no ``--force``.
        """
        own = [self._final] if self._final.is_file() else []
        earlier = [*own, *files_of(self._final)]
        if self.growing != self._final:
            earlier += files_of(self.growing)
        if earlier and not self._force:
            raise OutputExists(earlier[0])
        self._to_go = earlier

    def begun(self) -> None:
        """The new recording has its first row: what it replaces may go."""
        if self._chain:
            new = file_of(self.growing, 1)
            for path in self._to_go:
                if path != new:
                    path.unlink(missing_ok=True)

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
        from qtrace.trace.convert import convert, convert_files

        with converting(self.growing.name) as progress:
            if self._chain:
                convert_files(self.growing, self._final, self._force, progress, done=Path.unlink)
            else:
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
        growing = files_of(self.growing) if self._chain else [self.growing]
        final = files_of(self._final) if self._chain else [self._final]
        if self.output is None:
            text = "nothing was kept, as there is no -o"
        elif self.growing != self._final and any(one.is_file() for one in growing):
            ends = ["--to", self._final.suffix[1:]] if self._chain else [str(self._final)]
            how = shlex.join(["qtrace", "convert", *force, str(growing[0]), *ends])
            held = (
                f"{len(growing)} files from {growing[0]} on hold"
                if self._chain
                else (f"{self.growing} holds")
            )
            text = f"{held} all that was recorded; the trace is made by: {how}"
        elif final and _inode(final[0]) not in (0, self._earlier):
            how = shlex.join(["qtrace", "analyze", str(final[0])])
            text = f"{final[0]} is the trace; the verdict is given by: {how}"
        else:
            return
        click.echo(f"warning: broken off: {escape(text)}", err=True)


def _inode(path: Path) -> int:
    """Of a file, 0 where there is none."""
    return path.stat().st_ino if path.is_file() else 0
