"""Recordings behind a web server, which fsspec reads as it does object stores."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtrace.analysis.fleet import survey
from qtrace.errors import FleetFailed
from tests.fleet.processes import LOOPBACK, free_port
from tests.unit.fleets import saves

pytestmark = [pytest.mark.s3]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of the folder ``traces``."""
    handler = functools.partial(Quiet, directory=str(tmp_path / "traces"))
    with http.server.ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_recording_and_a_folder_of_them_are_read(url: str, tmp_path: Path) -> None:
    saves(tmp_path / "traces/a.csv", strikes=2)
    saves(tmp_path / "traces/b.csv")
    (row,) = survey([f"{url}/a.csv"], tmp_path / "one.parquet").rows
    assert (row.url, row.verdict) == (f"{url}/a.csv", "vcpu-poll")
    both = survey([f"{url}/"], tmp_path / "both.parquet").rows
    assert [one.verdict for one in both] == ["vcpu-poll", "main-loop"]


def test_nobody_at_the_address_is_told(tmp_path: Path) -> None:
    with pytest.raises(FleetFailed, match="no recording in http://") as error:
        survey([f"http://{LOOPBACK}:{free_port()}/a.csv"], tmp_path / "t.parquet")
    assert "check that the address answers" in error.value.remedy
