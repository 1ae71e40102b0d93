"""Requests that nobody answers: which one, on which node, and on whom it waits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import judge
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_look import Requests
from qtrace.inspection.request_proof import prove
from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.process import Process
from qtrace.qemu.block.coroutine_waits import MUTEX, QUEUE, REPLY
from tests.live.support.attached import attached
from tests.live.support.dead_fuse import fuse_file, guest_on
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.inspecting import inspect
from tests.live.support.other_process import stop
from tests.live.support.ptraced import until
from tests.live.support.serving import client_of, serving

pytestmark = pytest.mark.qemu

NODE, DEVICE = "far", "vd"
# A server that takes so long for each request, and sleeps meanwhile.
SLOW = "latency-ns=90000000000"
# QEMU would look at the disk to find it out.
GEOMETRY = "cyls=2,heads=16,secs=63"
# Where the main thread waits for a read that qemu-io has begun.
DRAINS = {"blk_pread", "blk_drain"}


@contextmanager
def guest_on_server(qemu: Path, folder: Path, *options: str) -> Iterator[tuple[Guest, int]]:
    """A guest with the disk DEVICE, whose node NODE a storage daemon serves; and its pid.

    Args:
        options: of the null-co node that is served.
    """
    disk = ",".join(("null-co,size=1048576,read-zeroes=off", *options))
    path = folder / "nbd"
    with serving(qemu, path, disk) as server, guest_on_disk(qemu, path) as guest:
        yield guest, server


def guest_on_disk(qemu: Path, path: Path, *options: str) -> Guest:
    disk = (
        "-blockdev", ",".join((client_of(path), f"node-name={NODE}", *options)),
        "-device", f"virtio-blk-pci,drive={NODE},id={DEVICE},{GEOMETRY}",
    )  # fmt: skip
    return Guest(qemu, "tcg", "idle", extra_args=disk)


def ask(guest: Guest, line: str) -> None:
    """Begin a request, whose end nobody waits for."""
    line = f'qemu-io -d /machine/peripheral/{DEVICE}/virtio-backend "{line}"'
    guest.qmp.command("human-monitor-command", **{"command-line": line})
    requests = Requests(Looker(LiveQemu(Process(guest.pid))))
    until(lambda: requests.look().causes, "the request")


def of_requests(document: dict[str, Any]) -> dict[str, Any]:
    (finding,) = [f for f in document["findings"] if f["verdict"] == "request-stuck"]
    return dict(finding)


def test_a_write_to_a_stopped_server_leads_to_its_process(
    qemu_binary: Path, tmp_path: Path
) -> None:
    with guest_on_server(qemu_binary, tmp_path) as (guest, server):
        stop(server)
        ask(guest, "aio_write 4k 512")
        status, document, _err = inspect("--pid", guest.pid)
        os.kill(server, signal.SIGCONT)
        requests = Requests(Looker(LiveQemu(Process(guest.pid))))
        until(lambda: not requests.look().causes, "the answer")
    assert (status, document["verdict"]) == (1, "request-stuck")
    finding = of_requests(document)
    (request,) = finding["requests"]
    assert (request["kind"], request["offset"], request["bytes"]) == ("write", 4096, 512)
    assert (request["node"], request["device"], request["wait"]) == (NODE, DEVICE, "reply")
    assert [(p["pid"], p["state"]) for p in finding["processes"]] == [(server, "T")]
    # The request, and what it writes.
    assert finding["queued_bytes"] >= 512
    assert finding["looks"] == 2
    words = finding["sentence"]
    assert (
        f"write of 512 bytes at 4096 on node {NODE} (nbd), for {DEVICE}: waits for a reply on fd"
        in words
    )
    assert f"process {server} (qemu-storage-da), stopped by a signal (SIGSTOP)" in words


def inspected_through_servers(
    qemu: Path, folder: Path, command: str
) -> tuple[int, int, int, dict[str, Any]]:
    """Of a guest whose request goes to a server that has it of another one, which is stopped: both
    servers, and inspect's status and document."""
    near, far = folder / "near", folder / "far"
    with (
        serving(qemu, far, "null-co,size=1048576,read-zeroes=off") as last,
        serving(qemu, near, client_of(far)) as first,
        guest_on_disk(qemu, near) as guest,
    ):
        stop(last)
        ask(guest, command)
        status, document, _err = inspect("--pid", guest.pid)
        os.kill(last, signal.SIGCONT)
    return first, last, status, document


def test_a_server_that_waits_for_a_server_of_its_own_leads_to_that_one(
    qemu_binary: Path, tmp_path: Path
) -> None:
    first, last, status, document = inspected_through_servers(
        qemu_binary, tmp_path, "aio_write 4k 512"
    )
    assert (status, document["verdict"]) == (1, "request-stuck"), document["remarks"]
    finding = of_requests(document)
    assert [request["node"] for request in finding["requests"]] == [NODE]
    assert [process["pid"] for process in finding["processes"]] == [last]
    assert (
        f"; process {first} has it in hand: write of 512 bytes at 4096 on node disk (nbd)"
        in finding["sentence"]
    )


def test_a_read_for_which_a_server_asks_first_where_data_lies_leads_to_that_one_too(
    qemu_binary: Path, tmp_path: Path
) -> None:
    """nbd_co_send_sparse_read() in nbd/server.c."""
    first, last, status, document = inspected_through_servers(
        qemu_binary, tmp_path, "aio_read 4k 512"
    )
    assert (status, document["verdict"]) == (1, "request-stuck")
    finding = of_requests(document)
    assert [process["pid"] for process in finding["processes"]] == [last]
    assert (
        f"; process {first} has it in hand: block status query on node disk (nbd)"
        in finding["sentence"]
    )


# MAX_NBD_REQUESTS (block/nbd.c).
SLOTS = 16


def test_who_waits_for_a_slot_waits_for_those_that_have_one(
    qemu_binary: Path, tmp_path: Path
) -> None:
    with guest_on_server(qemu_binary, tmp_path) as (guest, server):
        stop(server)
        for number in range(SLOTS + 2):
            line = (
                f'qemu-io -d /machine/peripheral/{DEVICE}/virtio-backend "aio_read {number}k 512"'
            )
            guest.qmp.command("human-monitor-command", **{"command-line": line})
        requests = Requests(Looker(LiveQemu(Process(guest.pid))))
        look = requests.look()
        os.kill(server, signal.SIGCONT)
    queued = [one for one in look.behind if one.wait.kind == QUEUE]
    assert {one.request.offset for one in queued if one.request} == {SLOTS << 10, 17 << 10}
    (reads,) = look.causes
    # One of those that have a slot reads, the others wait for the mutex that it holds.
    locked = [one for one in look.behind if one.wait.kind == MUTEX]
    assert {one.co.holders for one in locked if one.co} == {(reads.co.address if reads.co else 0,)}
    have = {one.co.address for one in (reads, *locked) if one.co}
    assert len(have) == SLOTS
    assert len({one.co.queue for one in queued if one.co}) == 1
    assert all(set(one.co.holders) == have for one in queued if one.co)


def test_a_job_that_asks_a_stopped_server_where_data_lies_is_told_with_its_process(
    tmp_path: Path,
) -> None:
    """QEMU does not track that."""
    copy = {"driver": "null-co", "node-name": "copy", "size": 1 << 20}
    job = {"job-id": "mi", "device": NODE, "target": "copy", "sync": "full"}
    with guest_on_server(find_qemu(), tmp_path) as (guest, server):
        guest.qmp.command("blockdev-add", **copy)
        stop(server)
        guest.qmp.command("blockdev-mirror", **job)
        requests = Requests(Looker(LiveQemu(Process(guest.pid))))
        until(lambda: requests.look().causes, "the question")
        status, document, _err = inspect("--pid", guest.pid)
        os.kill(server, signal.SIGCONT)
    (request,) = of_requests(document)["requests"]
    assert (status, request["kind"], request["offset"]) == (1, "block status query", None)
    assert (request["node"], request["job"], request["wait"]) == (NODE, "mi", "reply")


CURL = Path("/usr/lib/x86_64-linux-gnu/qemu/block-curl.so")
# It serves a file of zeroes by HTTP, and says at which port.
HTTP = f"""
import http.server, re
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        part = re.match(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range") or "")
        first, last = map(int, part.groups()) if part else (0, {1 << 20} - 1)
        self.send_response(206 if part else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(bytes(last - first + 1 if self.command == "GET" else 0))
    do_HEAD = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.skipif(
    not CURL.exists(), reason="no driver for HTTP: apt-get install qemu-block-extra"
)
def test_a_driver_that_asks_by_a_library_leads_to_its_server() -> None:
    with subprocess.Popen([sys.executable, "-c", HTTP], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/disk"
            disk = ("-blockdev", f"http,node-name={NODE},url={url},read-only=on",
                    "-device", f"virtio-blk-pci,drive={NODE},id={DEVICE},{GEOMETRY}")  # fmt: skip
            with Guest(find_qemu(), "tcg", "idle", extra_args=disk) as guest:
                stop(server.pid)
                ask(guest, "aio_read 512k 4k")
                status, document, _err = inspect("--pid", guest.pid)
        finally:
            server.kill()
    assert (status, document["verdict"]) == (1, "request-stuck")
    finding = of_requests(document)
    assert [process["pid"] for process in finding["processes"]] == [server.pid]
    assert (
        f"at 524288 on node {NODE} (http), for {DEVICE}: waits for its server on fd"
        in finding["sentence"]
    )


def test_a_watch_tells_of_requests_too(tmp_path: Path) -> None:
    with guest_on_server(find_qemu(), tmp_path) as (guest, server):
        stop(server)
        ask(guest, "aio_write 4k 512")
        watch = subprocess.Popen(
            [sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid), "--watch", "100ms",
             "--format", "json"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watch.stdout is not None
        findings = (json.loads(line)["findings"] for line in watch.stdout)
        (finding,) = next(found for found in findings if found)
        watch.send_signal(signal.SIGINT)
        watch.stdout.read()
        status = watch.wait()
        os.kill(server, signal.SIGCONT)
    assert (status, finding["verdict"]) == (1, "request-stuck")
    assert [process["pid"] for process in finding["processes"]] == [server]


def test_a_server_that_is_merely_slow_is_no_finding(qemu_binary: Path, tmp_path: Path) -> None:
    with guest_on_server(qemu_binary, tmp_path, SLOW) as (guest, _server):
        ask(guest, "aio_read 0 4k")
        requests = Requests(Looker(LiveQemu(Process(guest.pid))))
        proofs = [prove(requests, requests.look())]
        # On a crowded host it may be taking the request still: who runs may have answered.
        while not proofs[-1].waiting[0].same:
            proofs.append(prove(requests, requests.look()))
    assert not any(proof.findings for proof in proofs)
    # What it says of it: it is there, and how long. The server sleeps: it has answered nothing.
    (waiting,) = proofs[-1].waiting
    assert waiting.one.wait.kind == REPLY
    assert waiting.over_ns >= 500_000_000


def test_a_request_whose_server_is_gone_is_stuck(qemu_binary: Path, tmp_path: Path) -> None:
    """Its server is gone: QEMU tries to reach it, for reconnect-delay."""
    path = tmp_path / "nbd"
    with ExitStack() as stack:
        with serving(qemu_binary, path, "null-co,size=1048576,read-zeroes=off"):
            guest = stack.enter_context(guest_on_disk(qemu_binary, path, "reconnect-delay=600"))
        ask(guest, "aio_read 0 4k")
        status, document, _err = inspect("--pid", guest.pid)
    assert (status, document["verdict"]) == (1, "request-stuck")
    finding = of_requests(document)
    assert "waits to be connected to its server" in finding["sentence"]
    assert "lost the connection" in finding["proof"]


@pytest.mark.fuse
def test_a_worker_on_a_dead_file_system_leads_to_whoever_serves_it(
    qemu_binary: Path, tmp_path: Path
) -> None:
    with guest_on(qemu_binary, "tcg", tmp_path) as (guest, file):
        file.put_to_sleep(guest, "worker")
        status, document, _err = inspect("--pid", guest.pid)
        server = file.pid
    assert status == 1
    finding = of_requests(document)
    assert [request["kind"] for request in finding["requests"]] == ["read"]
    assert finding["tid"] is not None
    assert [p["pid"] for p in finding["processes"]] == [server]
    assert f"worker thread {finding['tid']}, which is in" in finding["sentence"]
    assert f"{file.path}, on fuse" in finding["sentence"]


@pytest.mark.bpf
def test_a_recording_tells_the_request_that_a_drain_waits_for(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        guest_on_server(find_qemu(), tmp_path) as (guest, server),
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        stop(server)
        ask(guest, "aio_write 4k 512")
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"} {"execute": "stop"}')
        until(lambda: "vm_stop" in functions_of_main_thread(guest.pid), "the hang")
        with attached(guest.pid, "--stall-after", "500ms", "-o", trace) as attach:
            status, report, _err = attach.end()
    (stuck,) = report["stuck"]
    assert (status, report["verdict"], stuck["command"]) == (1, "stuck", "QMP stop")
    request = f"write of 512 bytes at 4096 on node {NODE} (nbd), for {DEVICE}: waits for a reply"
    assert re.search(
        rf"; in flight for at least [\d.]+ m?s: {re.escape(request)}", stuck["sentence"]
    )
    assert f"process {server} (qemu-storage-da), stopped by a signal (SIGSTOP)" in stuck["sentence"]
    # The same from the file alone.
    assert judge([trace])["stuck"] == report["stuck"]


@pytest.mark.fuse
def test_asynchronous_io_on_a_dead_file_system_leads_to_whoever_serves_it(tmp_path: Path) -> None:
    line = 'qemu-io d "read 0 4096"'
    read = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
    with fuse_file(tmp_path) as file:
        disk = f"file,node-name=d,filename={file.path},aio=native,cache.direct=on,locking=off"
        with (
            Guest(find_qemu(), firmware="idle", extra_args=("-blockdev", disk)) as guest,
            socket.socket(socket.AF_UNIX) as qmp,
        ):
            try:
                file.freeze()
                qmp.connect(str(guest.second_qmp_socket))
                qmp.sendall(b'{"execute":"qmp_capabilities"}' + json.dumps(read).encode())
                until(lambda: DRAINS & set(functions_of_main_thread(guest.pid)), "the read")
                status, document, _err = inspect("--pid", guest.pid)
            finally:
                file.thaw()
        finding = of_requests(document)
        assert [process["pid"] for process in finding["processes"]] == [file.pid]
    assert status == 1
    assert "waits for the kernel (Linux AIO) on fd " in finding["sentence"]
    assert f", {file.path}, on fuse" in finding["sentence"]
