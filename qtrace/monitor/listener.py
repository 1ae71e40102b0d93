"""The process that listens on the port: it has no capability, no descriptor of the kernel's probes,
no right to look into others. It gets what is known line by line, and shows the last of it.

    python -m qtrace.monitor.listener ADDRESS PORT [CERTIFICATE KEY [CLIENT_CA]] < states
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server

from qtrace.monitor.metrics import HostCollector
from qtrace.monitor.state import HostState

NOBODY = 65534
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522
READY = "ready"


def main(arguments: list[str]) -> int:
    """Listen, give up all rights, then serve until the standard input ends."""
    address, port, *files = arguments
    certificate, key, authority = [*files, None, None, None][:3]
    known: list[HostState | None] = [None]
    registry = CollectorRegistry()
    registry.register(HostCollector(lambda: known[0]))
    try:
        server, _thread = start_http_server(
            int(port), address, registry, certificate, key, authority,
            client_auth_required=authority is not None,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        print(error, flush=True)
        return 1
    give_up_rights()
    print(READY, server.server_port, flush=True)
    _follow(sys.stdin, known)
    return 0


def give_up_rights() -> None:
    """For good: of root its user and groups, of anybody all capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _follow(lines: Iterable[str], known: list[HostState | None]) -> None:
    for line in lines:
        known[0] = HostState.load(line)


if __name__ == "__main__":
    # Who scrapes and never reads keeps a thread of the server's, not the end.
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
