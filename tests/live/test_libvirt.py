"""A domain that libvirt has defined and started: another user's, sandboxed, its monitor taken.

libvirt's daemon is Debian's, in a root that ``make qemus`` unpacks, and started by the test: in
mounts of its own, so that the machine's libvirt, if there is one, knows nothing of it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.process.process_list import find_guest
from tests.builds import ROOT
from tests.conftest import absent
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attached, wait_for
from tests.live.support.inspecting import context, inspect, thread

pytestmark = [pytest.mark.bpf, pytest.mark.builds, pytest.mark.soak]

FOLDER = ROOT / ".cache/qemus/libvirt/root"
NAME = "qtrace-of-libvirt"
USER = 64055
# It tries what QEMU can do before it answers, which took a minute on a busy machine.
PATIENCE_S = 200.0
SUSPENDED = 5
# Of the host's folders those that libvirt keeps nothing in, and empty ones for what it keeps.
DAEMON = f"""
set -eu
root=$1
mount --bind "$root" "$root"
for folder in /*; do
    case $folder in /usr | /etc | /run | /var | /opt | /boot | /lost+found) continue ;; esac
    if [ -d "$folder" ] && [ ! -L "$folder" ]; then
        mkdir -p "$root$folder"
        mount --rbind "$folder" "$root$folder"
    fi
done
for folder in /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$root$folder"
    mount -t tmpfs -o mode=755 none "$root$folder"
done
rmdir "$root/var/run" 2>/dev/null || true
ln -sfn /run "$root/var/run"
cd "$root/etc"
echo "127.0.0.1 localhost $(hostname)" >hosts
printf 'hosts: files\\npasswd: files\\ngroup: files\\n' >nsswitch.conf
printf 'root:x:0:0::/:/bin/sh\\nlibvirt-qemu:x:{USER}:{USER}::/:/bin/sh\\n' >passwd
printf 'root:x:0:\\ntty:x:5:\\nkvm:x:64054:\\nlibvirt-qemu:x:{USER}:\\n' >group
echo 'auth_unix_rw = "none"' >libvirt/libvirtd.conf
printf 'seccomp_sandbox = 1\\nsecurity_driver = "none"\\ncgroup_controllers = [ ]\\n' \\
    >libvirt/qemu.conf
echo 'stdio_handler = "file"' >>libvirt/qemu.conf
exec unshare --root="$root" --wd=/ /usr/sbin/libvirtd
"""
DOMAIN = f"""
<domain type='qemu'>
  <name>{NAME}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
Virsh = Callable[..., str]


@contextmanager
def libvirt(folder: Path) -> Iterator[Virsh]:
    """What runs a command of virsh, at a daemon of our own."""
    if not (FOLDER.parent / ".complete").exists():
        absent("builds", "libvirt is not here: make qemus")
    with (folder / "libvirtd.log").open("w") as log:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", DAEMON, "sh", str(FOLDER)], stdout=log, stderr=log
        )
        inside = f"--mount=/proc/{daemon.pid}/ns/mnt", f"--root=/proc/{daemon.pid}/root"

        def virsh(*arguments: object) -> str:
            return subprocess.run(
                ["nsenter", *inside, "virsh", "-q", "-c", "qemu:///system", *map(str, arguments)],
                capture_output=True, text=True, check=True, timeout=PATIENCE_S,
            ).stdout  # fmt: skip

        try:
            wait_for(lambda: daemon.poll() is not None or is_served(virsh), PATIENCE_S)
            assert daemon.poll() is None, (folder / "libvirtd.log").read_text()
            yield virsh
        finally:
            daemon.terminate()
            daemon.wait(TIMEOUT_S)


def is_served(virsh: Virsh) -> bool:
    try:
        virsh("list")
    except subprocess.CalledProcessError:
        return False
    return True


@contextmanager
def domain(virsh: Virsh, folder: Path) -> Iterator[int]:
    """The pid of its QEMU."""
    description = folder / "domain.xml"
    description.write_text(DOMAIN)
    virsh("define", description)
    virsh("start", NAME)
    try:
        yield find_guest(NAME)
    finally:
        virsh("destroy", NAME)


def test_its_domain_is_recorded_and_looked_into(
    tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    with libvirt(tmp_path) as virsh, domain(virsh, tmp_path) as pid:
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"\nUid:\t{USER}\t" in status
        assert "\nSeccomp:\t2\n" in status
        with attached(pid) as attach:
            for _ in range(SUSPENDED):
                virsh("suspend", NAME)
                virsh("resume", NAME)
            _status, report, _err = attach.end()
        calls = {call["name"]: call["count"] for call in report["calls"]}
        status, document, _err = inspect("--pid", pid)
    assert calls["vm_stop"] == SUSPENDED
    assert report["lost_events"] == 0
    assert (status, document["verdict"]) == (0, "clear"), document["unclear"]
    assert context(document, "main")["tid"] == pid
    assert "vcpu" in {one["role"] for one in document["threads"]}
    assert thread(document, pid)["role"] == "main"
    soak_row("a domain of libvirt", f"{calls['vm_stop']} of {SUSPENDED} suspensions recorded")
