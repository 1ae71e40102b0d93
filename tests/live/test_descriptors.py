"""Who is at the other end of a descriptor: real sockets, pipes, file systems and namespaces."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.host import mounts
from qtrace.host.descriptors import Descriptor, Descriptors
from qtrace.host.owners import Owners
from qtrace.host.peer import Peer
from qtrace.host.sock_diag import InetSocket, Sockets, sockets_of
from tests.limits import TIMEOUT_S
from tests.live.support.dead_fuse import fuse_file
from tests.live.support.other_process import holding, stop
from tests.live.support.ptraced import until
from tests.live.test_privilege import hiding

OWN = os.getpid()
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
LISTENS = """
server = socket.create_server(('127.0.0.1', 0), backlog=1)
print(server.getsockname()[1], file=open('port', 'w'))
"""


def describe(pid: int, fd: int) -> Descriptor:
    """As the function, however busy the machine."""
    return Descriptors(pid, TIMEOUT_S).describe(fd)


def port(folder: Path) -> int:
    until(lambda: (folder / "port").exists(), "the port")
    return int((folder / "port").read_text())


def test_a_unix_socket_leads_to_the_process_that_reads_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen(1)
        client.connect("s")
        peer, _address = server.accept()
        with holding("", pass_fds=[peer.fileno()]) as pid:
            peer.close()
            client.send(bytes(28))
            sound = describe(OWN, client.fileno())
            stop(pid)
            found = describe(OWN, client.fileno())
            name = Peer.of(pid).name
        closed = describe(OWN, client.fileno())
    assert (sound.kind, sound.name, sound.unread) == ("unix", "s", 28)
    assert [(one.pid, one.held) for one in sound.peers] == [(pid, "")]
    assert found.text == (
        f"fd {found.fd}, unix socket s, whose other end is process {pid} ({name}), "
        "stopped by a signal (SIGSTOP); 28 bytes unread there"
    )
    assert found.peers[0].turns >= sound.peers[0].turns > 0
    assert (closed.relation, closed.peers) == ("whose other end is closed", ())


def test_who_was_forked_has_the_other_end_too_and_one_self_is_said() -> None:
    one, other = socket.socketpair()
    with one, other:
        both = describe(OWN, one.fileno())
        fds = [other.fileno()]
        with holding("", pass_fds=fds) as first, holding("", pass_fds=fds) as second:
            found = describe(OWN, one.fileno())
    assert both.relation == "whose other end is this process itself"
    assert {peer.pid for peer in found.peers} == {first, second}


def test_a_client_in_the_backlog_waits_for_the_one_that_listens(tmp_path: Path) -> None:
    code = "server = socket.socket(socket.AF_UNIX); server.bind('s'); server.listen(4)"
    with holding(code, folder=tmp_path) as pid, socket.socket(socket.AF_UNIX) as client:
        loose = describe(OWN, client.fileno())
        client.connect(str(tmp_path / "s"))
        found = describe(OWN, client.fileno())
        (fd,) = (
            fd for owner, fd in Owners(TIMEOUT_S).of(f"socket:[{listener(pid)}]") if owner == pid
        )
        listens = describe(pid, fd)
    assert loose.relation == "which is not connected"
    assert (found.relation, found.name) == ("which is not accepted yet by", "s")
    assert [peer.pid for peer in found.peers] == [pid]
    assert (listens.relation, listens.peers[0].pid) == ("which has not accepted yet", OWN)


def listener(pid: int) -> int:
    """The inode of the unix socket that a process listens on."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    listening = [one.inode for one in sockets_of(pid).unix.values() if one.listens]
    return next(inode for inode in listening if f"socket:[{inode}]" in links)


def test_a_tcp_connection_is_followed_to_the_process_on_this_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _address = server.accept()
    with client, peer, holding("", pass_fds=[peer.fileno()]) as pid:
        peer.close()
        client.send(bytes(7))
        stop(pid)
        until(lambda: describe(OWN, client.fileno()).unread == 7, "the seven bytes")
        found = describe(OWN, client.fileno())
        where = f"127.0.0.1:{client.getsockname()[1]} -> 127.0.0.1:{client.getpeername()[1]}"
    assert found.text.startswith(f"fd {found.fd}, TCP {where}, whose other end is process {pid} (")
    assert found.text.endswith("stopped by a signal (SIGSTOP); 7 bytes unread there")


@pytest.mark.parametrize("at", ["127.0.0.53", "0.0.0.0"])
def test_a_udp_client_is_followed_to_the_server_that_is_connected_to_nobody(
    at: str, tmp_path: Path
) -> None:
    """As whoever resolves a name is to systemd-resolved."""
    code = f"s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('{at}', 0))"
    told = f"{code}; print(s.getsockname()[1], file=open('port', 'w'))"
    with holding(told, folder=tmp_path) as pid, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.53", port(tmp_path)))
        client.send(bytes(7))
        found = describe(OWN, client.fileno())
    assert (found.kind, found.relation, found.unread) == ("UDP", "whose other end is", None)
    assert [one.pid for one in found.peers] == [pid]


def test_who_takes_what_is_sent_to_any_address_of_this_host_takes_nothing_for_others() -> None:
    server = InetSocket(7, "UDP", 7, ("0.0.0.0", 53), ("0.0.0.0", 0), 0, 0, 0)
    sockets = Sockets({}, (server,))
    here, there = (
        InetSocket(8, "UDP", 1, ("192.0.2.2", 40000), (address, 53), 0, 0, 0)
        for address in ("127.0.0.53", "192.0.2.1")
    )
    assert (sockets.udp_server_of(here), sockets.udp_server_of(there)) == (server, None)


def test_a_tcp_client_in_the_backlog_waits_for_the_one_that_listens(tmp_path: Path) -> None:
    with (
        holding(LISTENS, folder=tmp_path) as pid,
        socket.create_connection(("127.0.0.1", port(tmp_path))) as client,
    ):
        client.send(bytes(5))
        until(lambda: describe(OWN, client.fileno()).unread == 5, "the five bytes")
        found = describe(OWN, client.fileno())
    assert found.relation == "which is not accepted yet by"
    assert [one.pid for one in found.peers] == [pid]


def test_a_connection_that_nobody_answers_is_told(tmp_path: Path) -> None:
    # The kernel answers no more than one that is not accepted, and one above.
    code = LISTENS.replace("backlog=1", "backlog=0")
    with holding(code, folder=tmp_path), socket.socket() as first, socket.socket() as second:
        first.connect(("127.0.0.1", port(tmp_path)))
        second.setblocking(False)
        assert second.connect_ex(("127.0.0.1", port(tmp_path))) == errno.EINPROGRESS
        found = describe(OWN, second.fileno())
    assert (found.relation, found.unread) == ("which nobody has answered yet", None)


def test_a_pipe_leads_to_those_at_its_other_end() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"):
        assert (
            describe(OWN, writing).relation
            == "whose read end nobody but this process itself has open"
        )
        with holding("", pass_fds=[reading]) as pid:
            found, other = describe(OWN, writing), describe(OWN, reading)
    assert (found.kind, found.relation) == ("pipe", "whose read end is held by")
    assert [peer.pid for peer in found.peers] == [pid]
    assert other.peers == ()


def test_a_named_pipe_is_one_where_it_is_known_to_be(tmp_path: Path) -> None:
    path = tmp_path / "p"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with open(fd, "r+b", buffering=0), holding(f"f = os.open({str(path)!r}, os.O_RDWR)") as pid:
        plain = describe(OWN, fd)
        found = Descriptors(OWN, TIMEOUT_S).describe(fd, writes=True, is_pipe=True)
    assert plain.kind == "file"
    assert (found.kind, found.name) == ("pipe", str(path))
    assert [peer.pid for peer in found.peers] == [pid]


@as_root
def test_a_named_pipe_is_the_same_in_another_mount_namespace(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    path = tmp_path / "here" / "p"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    bind = f'mount --bind {tmp_path}/here {tmp_path}/there && exec "$@"'
    within = ["unshare", "-m", "sh", "-c", bind, "sh"]
    code = f"f = os.open({str(tmp_path / 'there' / 'p')!r}, os.O_RDWR)"
    with open(fd, "r+b", buffering=0), holding(code, within=within) as pid:
        found = Descriptors(OWN, TIMEOUT_S).describe(fd, writes=True, is_pipe=True)
    assert [peer.pid for peer in found.peers] == [pid]


def test_a_pty_leads_to_who_has_its_other_end() -> None:
    master, terminal = os.openpty()
    name = os.ttyname(terminal)
    with open(master, "rb"), holding("", pass_fds=[terminal]) as pid:
        os.close(terminal)
        found, other = describe(OWN, master), describe(pid, terminal)
    assert (found.kind, found.name, other.name) == ("pty", name, name)
    assert [peer.pid for peer in found.peers] == [pid]
    assert [peer.pid for peer in other.peers] == [OWN]


def test_what_is_no_file_is_called_as_the_kernel_calls_it(tmp_path: Path) -> None:
    with select.epoll() as epoll, open("/dev/null") as null, (tmp_path / "f").open("w") as file:
        event = os.eventfd(0)
        epoll.register(event)
        found = [
            describe(OWN, f if isinstance(f, int) else f.fileno())
            for f in (epoll, event, null, file)
        ]
        polled = Descriptors(OWN, TIMEOUT_S).polled(epoll.fileno())
        os.close(event)
        gone = describe(OWN, event)
    assert [(one.kind, one.name) for one in found] == [
        ("anonymous", "eventpoll"), ("anonymous", "eventfd"), ("device", "/dev/null"),
        ("file", str(tmp_path / "f")),
    ]  # fmt: skip
    assert polled == [event]
    assert found[3].mount is not None
    assert gone.text == f"fd {event}, closed"


def test_of_a_process_that_has_ended_that_is_said() -> None:
    with holding("") as pid:
        pass
    assert describe(pid, 0).text == "fd 0, closed (the process has ended)"
    assert Peer.of(pid).text == f"process {pid} (?), which has ended"


@as_root
@pytest.mark.parametrize(
    ("within", "why"),
    [
        ((), "that this user may not look into)"),
        (hiding("hidepid=2"), "(it may belong to a process that /proc hides from this user (hidep"),
        (("unshare", "--pid", "--fork", "--mount-proc"), "outside of this container (pid namesp"),
    ],
    ids=["another user's", "hidden", "outside"],
)
def test_what_may_not_be_seen_is_said(within: tuple[str, ...], why: str) -> None:
    one, other = socket.socketpair()
    drop = (
        "" if "--pid" in within else f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    )
    code = f"""
import os
from qtrace.host import mounts
from qtrace.host.descriptors import Descriptors
{drop}
print(Descriptors(1, {TIMEOUT_S}).describe(0).text)
print(Descriptors(os.getpid(), {TIMEOUT_S}).describe({one.fileno()}).text)
"""
    with one, other, holding("", pass_fds=[other.fileno()]) as pid:
        os.close(other.detach())
        shown = subprocess.run(
            [*within, sys.executable, "-c", code], capture_output=True, text=True, check=True,
            pass_fds=[one.fileno()],
        ).stdout.splitlines()  # fmt: skip
    assert f"({pid})" not in shown[1]
    assert f"process {pid} " not in shown[1]
    assert why in shown[1], shown[1]
    if drop:
        assert shown[0].startswith(("fd 0 (it may not be seen: Perm", "fd 0 (/proc hides its proc"))


@as_root
def test_peers_in_other_network_namespaces_are_found() -> None:
    one, other = socket.socketpair()
    code = """
import fcntl
# Its loopback comes up (SIOCSIFFLAGS).
fcntl.ioctl(socket.socket(), 0x8914, b'lo'.ljust(16, b'\\0') + b'\\x49\\0' + bytes(14))
here, there = socket.socketpair()
os.dup2(there.fileno(), 90); os.dup2(here.fileno(), 91)
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname()); os.dup2(client.fileno(), 92)
peer = server.accept()[0]
client.send(bytes(3))
"""
    with one, other, holding(code, within=["unshare", "-n"], pass_fds=[other.fileno()]) as pid:
        other.close()
        one.send(bytes(4))
        mine = describe(OWN, one.fileno())
        theirs, tcp = describe(pid, 90), describe(pid, 92)
    assert ([peer.pid for peer in mine.peers], mine.unread) == ([pid], 4)
    assert theirs.relation == tcp.relation == "whose other end is this process itself"
    assert tcp.unread == 3


@as_root
def test_a_process_in_a_pid_namespace_is_named_by_its_id_here() -> None:
    one, other = socket.socketpair()
    within = ["unshare", "--pid", "--fork", "--kill-child"]
    with one, other, holding("", within=within, pass_fds=[other.fileno()]) as unshare:
        other.close()
        found = describe(OWN, one.fileno())
    inner = [peer.pid for peer in found.peers if peer.pid != unshare]
    assert len(inner) == 1


@pytest.mark.fuse
def test_before_linux_6_18_who_serves_a_mount_is_told_as_perhaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes have /dev/fuse open, and the command line of one names the mount."""
    monkeypatch.setattr(mounts, "fdinfo", lambda _pid, _fd: {"flags": "02"})
    mount = mounts.Mount(1, "0:99", str(tmp_path / "m"), "fuse.sshfs", "host:/")
    code = "f = os.open('/dev/fuse', os.O_RDWR)"
    with holding(code) as _other, holding(code + f"  # {mount.at}") as pid:
        assert mounts.servers(mount, Owners(TIMEOUT_S)) == ([pid], False)


@pytest.mark.fuse
@pytest.mark.qemu
def test_a_file_on_fuse_leads_to_the_process_that_serves_it(tmp_path: Path) -> None:
    with fuse_file(tmp_path) as file, file.path.open("rb") as opened:
        file.freeze()
        # Whoever asks the file system for anything hangs until it is thawed.
        found = describe(OWN, opened.fileno())
        by_path = Descriptors(OWN, TIMEOUT_S).path(str(file.path))
        server = file.pid
        file.thaw()
    assert found.mount is not None
    assert found.mount.is_fuse
    for one in (found, by_path):
        assert [(peer.pid, peer.held) for peer in one.peers] == [
            (server, "stopped by a signal (SIGSTOP)")
        ]
    assert f"fd {found.fd}, {file.path}, on fuse" in found.text


def test_a_look_up_ends_in_time() -> None:
    one, other = socket.socketpair()
    with one, other:
        found = Descriptors(OWN, limit_s=0).describe(one.fileno())
    assert (found.kind, found.peers) == ("socket", ())
    assert found.unseen == "sockets cannot be looked up (no time was left)"


def test_a_pipe_of_the_same_name_in_another_folder_is_another_one(tmp_path: Path) -> None:
    """Both on one file system, as two guests' pipes are that QEMU opens by a relative path."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "pipe")
    fd = os.open(tmp_path / "other/pipe", os.O_RDWR)
    with (
        subprocess.Popen(["sleep", "600"], cwd=tmp_path / "one") as asks,
        subprocess.Popen(["sleep", "600"], stdin=fd) as holds,
    ):
        os.close(fd)
        try:
            found = Descriptors(asks.pid).path("pipe", is_pipe=True)
            assert found.relation == "whose other end nobody has open"
            own = Descriptors(asks.pid).path(str(tmp_path / "other/pipe"), is_pipe=True)
            assert holds.pid in {peer.pid for peer in own.peers}
        finally:
            asks.kill()
            holds.kill()
