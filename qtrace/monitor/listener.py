"""The process that listens on the port: it has no capability, no descriptor of the kernel's probes,
no right to look into others. It gets what is known line by line, and shows the last of it.

    python -m qtrace.monitor.listener ADDRESS PORT [CERTIFICATE KEY [CLIENT_CA]] < states
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, make_wsgi_app

from qtrace.monitor.metrics import HostCollector
from qtrace.monitor.metrics_server import MetricsServer, rehearse, tls_context
from qtrace.monitor.rights import give_up_rights
from qtrace.monitor.state import HostState

# The first line that it writes begins with one of these.
READY, NO_PORT, NO_TLS = "ready", "port", "tls"


def main(arguments: list[str]) -> int:
    """Listen, give up all rights, then serve until the standard input ends."""
    address, port, *names = arguments
    certificate, key, authority = [*map(Path, names), None, None, None][:3]
    # Most states are replaced by the next before anybody asks: only who does has one read.
    known = [HostState((), 0, {}, 0.0, 0.0).dump()]
    registry = CollectorRegistry()
    registry.register(HostCollector(lambda: HostState.load(known[0]) if known[0] else None))
    try:
        context = tls_context(certificate, key, authority) if certificate and key else None
        page = make_wsgi_app(registry)
        server = MetricsServer(address, int(port), page, context)
    except ValueError as error:
        print(NO_TLS, error, flush=True)
        return 1
    except OSError as error:
        print(NO_PORT, error.strerror or error, flush=True)
        return 1
    rehearse(page)
    known[0] = ""
    give_up_rights()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(READY, server.server_port, flush=True)
    _follow(sys.stdin, known)
    return 0


def _follow(lines: Iterable[str], known: list[str]) -> None:
    for line in lines:
        known[0] = line


if __name__ == "__main__":
    # Who scrapes and never reads keeps a thread of the server's, not the end.
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
