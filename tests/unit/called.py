"""A command of qtrace, called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

import qtrace.cli


@dataclass
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]


def calling(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """What takes the command's arguments."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["qtrace", command, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            qtrace.cli.main()
        return Done(int(caught.value.code or 0), *capsys.readouterr())

    return call
