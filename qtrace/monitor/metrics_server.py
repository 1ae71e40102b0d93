"""A web server for one page, which whoever connects cannot keep from others.

prometheus-client's own shakes hands within accept(2): with TLS, one that connects and says nothing
keeps all others waiting (start_wsgi_server() of 0.26).
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import traceback
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

# Who neither asks nor reads is left after so long; so many are served at the same time.
PATIENCE_S = 20.0
MOST_AT_ONCE = 64


def tls_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Of files in PEM. Raises ValueError: which one cannot be used, and why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ValueError(
            f"no certificate and key to serve https with in {certificate} and {key}: {_why(error)}"
        ) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            why = f"no certificate of an authority in {client_ca}: {_why(error)}"
            raise ValueError(why) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves from ``serve_forever`` on, each request in a thread of its own.

    Args:
        port: 0 takes a free one; ``server_port`` tells it.
        context: for https.

    Raises:
        OSError: it cannot listen there.
    """

    daemon_threads = True

    def __init__(
        self, host: str, port: int, page: WSGIApplication, context: ssl.SSLContext | None
    ) -> None:
        family, _kind, _protocol, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self._context = context
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__((str(address[0]), int(address[1])), _Handler)
        self.set_app(page)

    def server_bind(self) -> None:
        """Without asking a name server who this host is, as HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Hands are shaken later, in the request's own thread."""
        connection, address = super().get_request()
        if self._context is not None:
            connection = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of who goes away, or has not the right certificate, nothing is said."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def setup(self) -> None:
        super().setup()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def rehearse(page: WSGIApplication) -> None:
    """Have all imported that an answer takes: who has no rights any more may not read it."""
    traceback.format_exc()
    for accept in ("", "application/openmetrics-text"):
        asked = {
            "REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "HTTP_ACCEPT": accept,
            "HTTP_ACCEPT_ENCODING": "gzip",
        }  # fmt: skip
        list(page(asked, lambda *_: lambda _data: None))


def _why(error: OSError) -> str:
    """What is wrong, without the place in OpenSSL's source that found it."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").lower().replace("_", " ")
    return error.strerror or str(error)
