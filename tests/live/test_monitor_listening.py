"""The port of ``qtrace monitor``: certificates, and who connects and keeps silent."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.limits import TIMEOUT_S
from tests.live.support.monitored import monitor, scrape

pytest.importorskip("prometheus_client")

SILENT = 8


class Certificates:
    """Made by openssl: one for the server, one for a client, one of a stranger's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority, _ = self._own("authority")
        self.server = self._signed("server", "subjectAltName=IP:127.0.0.1")
        self.client = self._signed("client", "extendedKeyUsage=clientAuth")
        self.stranger = self._own("stranger")

    def _own(self, name: str) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        _openssl("req", "-x509", *_new_key(key), "-days", "2", "-subj", f"/CN={name}",
                 "-out", certificate)  # fmt: skip
        return certificate, key

    def _signed(self, name: str, extension: str) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(extension)
        _openssl("req", *_new_key(key), "-subj", f"/CN={name}", "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.authority, "-CAkey",
                 self.authority.with_suffix(".key"), "-CAcreateserial", "-days", "2",
                 "-extfile", extensions, "-out", certificate)  # fmt: skip
        return certificate, key

    def ask(self, url: str, identity: tuple[Path, Path] | None) -> str:
        context = ssl.create_default_context(cafile=str(self.authority))
        if identity is not None:
            context.load_cert_chain(*identity)
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
            return str(answer.read().decode())


def _new_key(key: Path) -> list[object]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def silent(stack: ExitStack, url: str, said: bytes = b"") -> None:
    """Connections of clients that say no more, and read nothing."""
    port = int(url.split(":")[2].split("/")[0])
    for _ in range(SILENT):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S))
        connection.sendall(said)


def test_only_who_has_a_certificate_of_the_authority_is_answered_and_nobody_keeps_him_waiting(
    certificates: Certificates,
) -> None:
    (certificate, key), authority = certificates.server, certificates.authority
    options = ("--tls-cert", certificate, "--tls-key", key, "--client-ca", authority)
    with monitor("--looks-only", *options) as (_, url), ExitStack() as stack:
        assert url.startswith("https://")
        silent(stack, url)
        assert "qtrace_monitor_age_seconds" in certificates.ask(url, certificates.client)
        for identity in (None, certificates.stranger):
            with pytest.raises((urllib.error.URLError, OSError)):
                certificates.ask(url, identity)
        with pytest.raises((urllib.error.URLError, OSError)):
            scrape(url.replace("https", "http"))
        assert "qtrace_monitor_age_seconds" in certificates.ask(url, certificates.client)


def test_who_asks_and_never_reads_keeps_no_other_waiting_and_not_the_end() -> None:
    with monitor("--looks-only") as (process, url), ExitStack() as stack:
        silent(stack, url, b"GET /metrics HTTP/1.1\r\n\r\n" * 50)
        silent(stack, url, b"GET /metr")
        assert "qtrace_monitor_age_seconds" in scrape(url)
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize(
    ("certificate", "key", "authority", "what"),
    [
        ("garbage", "server.key", None, "no certificate and key to serve https with in "),
        ("server.pem", "client.key", None, "key values mismatch"),
        ("server.pem", "server.key", "garbage", "no certificate of an authority in "),
    ],
)
def test_files_without_certificates_are_two_lines_and_status_3(
    certificates: Certificates, certificate: str, key: str, authority: str | None, what: str
) -> None:
    folder = certificates.authority.parent
    (folder / "garbage").write_text("garbage\n")
    named = ["--tls-cert", folder / certificate, "--tls-key", folder / key]
    named += ["--client-ca", folder / authority] if authority else []
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "monitor", "--listen", "127.0.0.1:0", *map(str, named)],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert run.returncode == 3
    assert re.fullmatch(r"error: .*\nremedy: openssl x509 .*\n", run.stderr), run.stderr
    assert what in run.stderr
