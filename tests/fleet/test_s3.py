"""Recordings in an object store: moto's server, on loopback, and real s3fs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis.fleet import read_table, survey
from qtrace.errors import FleetFailed
from tests.fleet.processes import LOOPBACK, fleet, free_port, running
from tests.unit.chains import cut
from tests.unit.fleets import recordings, saves

pytestmark = [pytest.mark.s3]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("moto") / "log"
    with running(
        sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port), port=port, log=log
    ):
        yield f"http://{LOOPBACK}:{port}"


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The file system of an empty store with one bucket, ``traces``."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("traces")
    yield system
    system.rm("traces", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_rows_are_those_of_the_same_files_on_a_disk(bucket: Any, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "traces", 12)
    bucket.put(str(folder), "traces/day", recursive=True)
    done = fleet("s3://traces/day", "-o", str(tmp_path / "s3.parquet"), "--processes", "2")
    assert done.returncode == 1, done.stderr
    there = read_table(tmp_path / "s3.parquet")
    here = survey([str(folder)], tmp_path / "here.parquet").rows
    assert [row.url for row in there] == [
        row.url.replace(str(folder), "s3://traces/day") for row in here
    ]
    assert [(r.sha256, r.verdict, r.size) for r in there] == [
        (r.sha256, r.verdict, r.size) for r in here
    ]
    for one, other in zip(there, here, strict=True):
        assert one.summary is not None
        assert other.summary is not None
        assert replace(one.summary, findings={}) == replace(other.summary, findings={})
        assert {found.trace for found in one.summary.findings.values()} <= {one.url}


def test_a_second_run_reads_only_what_is_new(bucket: Any, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "traces", 3)
    bucket.put(str(folder), "traces/day", recursive=True)
    table = tmp_path / "s3.parquet"
    assert survey(["s3://traces/day/**/*.csv"], table).read == 3
    bucket.put(str(saves(tmp_path / "new.csv", 3)), "traces/day/new.csv")
    bucket.put(str(saves(tmp_path / "other.csv", 4)), "traces/day/host0/00000.csv")
    assert survey(["s3://traces/day"], table).read == 2
    assert survey(["s3://traces/day"], table).read == 0


def test_credentials_that_nobody_knows_are_told(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    strict = {"INITIAL_NO_AUTH_ACTION_COUNT": "0"}
    with running(
        sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port), port=port,
        log=tmp_path / "log", environment=strict,
    ):  # fmt: skip
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{port}")
        type(bucket).clear_instance_cache()
        with pytest.raises(FleetFailed, match="cannot list s3://traces/day") as error:
            survey(["s3://traces/day"], tmp_path / "t.parquet")
    assert "check the credentials" in error.value.remedy


def test_a_chain_in_a_bucket_is_fetched_as_one_recording(bucket: Any, tmp_path: Path) -> None:
    whole = saves(tmp_path / "whole/t.csv", strikes=2)
    (tmp_path / "day").mkdir()
    cut(whole, tmp_path / "day", [3, 9])
    bucket.put(str(tmp_path / "day"), "traces/day", recursive=True)
    (row,) = survey(["s3://traces/day"], tmp_path / "s3.parquet").rows
    (here,) = survey([str(tmp_path / "day")], tmp_path / "here.parquet").rows
    assert row.url == "s3://traces/day/t.chain-*.csv"
    assert (row.sha256, row.verdict, row.size) == (here.sha256, "vcpu-poll", here.size)
    assert survey(["s3://traces/day"], tmp_path / "s3.parquet").read == 0


def test_a_bucket_that_is_none_and_a_store_that_is_away_are_told(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "t.parquet"
    with pytest.raises(FleetFailed, match="s3://traces/nothing"):
        survey(["s3://traces/nothing"], table)
    with pytest.raises(FleetFailed, match="s3://no-such-bucket"):
        survey(["s3://no-such-bucket/day"], table)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    type(bucket).clear_instance_cache()
    with pytest.raises(FleetFailed, match="cannot list s3://traces") as error:
        survey(["s3://traces/day"], table)
    assert "AWS_ENDPOINT_URL" in error.value.remedy
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    type(bucket).clear_instance_cache()
    with pytest.raises(FleetFailed) as error:
        survey(["s3://traces/day"], table)
    assert "credentials" in error.value.remedy
