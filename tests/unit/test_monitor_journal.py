"""Messages with fields, as the journal's protocol has them."""

from __future__ import annotations

import socket
from pathlib import Path

from qtrace.monitor import journal


def test_a_value_of_several_lines_cannot_become_another_field(tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(place)
        assert journal.send("what", journal.ERROR, {"QTRACE_VM": "a\nPRIORITY=0"}, place)
        got = journald.recv(4096)
    begins = b"MESSAGE=what\nPRIORITY=3\nSYSLOG_IDENTIFIER=qtrace\n"
    assert got == begins + b"QTRACE_VM\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"


def test_where_there_is_no_journal_that_is_known(tmp_path: Path) -> None:
    assert not journal.send("what", journal.ERROR, {}, str(tmp_path / "none"))
    assert not journal.is_stderr()
