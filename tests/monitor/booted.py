"""A Debian whose first process is a real systemd: this machine's files below a tmpfs, by
systemd-nspawn."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.limits import TIMEOUT_S
from tests.live.support.monitored import until

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cache/nspawn"
NSPAWN = TOOLS / "usr/bin/systemd-nspawn"
TARGET = "up.target"
# Where a machine sees this checkout: one below /tmp has something else there.
CHECKOUT = "/qtrace"
# In a mount namespace of its own: all of it is gone with the machine.
BOOT = """
set -eu
mkdir -p /run/systemd/nspawn
for place in "$1" /run/systemd/nspawn; do mount -t tmpfs tmpfs "$place"; done
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
chmod a+x "$1/root/root" # a Python may lie there
cp -r "$2/." "$1/root/etc/systemd/system/"
root=$1 shared=$3; shift 3
export LD_LIBRARY_PATH=$TOOLS/usr/lib/x86_64-linux-gnu/systemd
exec "$TOOLS/usr/bin/systemd-nspawn" --quiet --keep-unit --register=no --directory="$root/root" \\
    --link-journal=no --capability=CAP_BPF,CAP_PERFMON --system-call-filter=bpf \\
    --boot --bind="$shared:/shared" "$@"
"""


def in_machine(path: Path) -> str:
    """What a path of this machine is called there."""
    return f"{CHECKOUT}/{path.relative_to(ROOT)}" if path.is_relative_to(ROOT) else str(path)


class Booted:
    """One that runs.

    Attributes:
        shared: a folder that it sees as /shared.
    """

    def __init__(self, leader: int, shared: Path) -> None:
        self.leader, self.shared = leader, shared

    def run(self, *command: str) -> str:
        """What a command in it prints. It may fail: its caller looks at what it printed."""
        entered = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", *command]
        run = subprocess.run(entered, capture_output=True, text=True, timeout=TIMEOUT_S)
        return run.stdout + run.stderr

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def journal(self, *matches: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "json", *matches)


@contextmanager
def booted(folder: Path, units: dict[str, str]) -> Iterator[Booted]:
    """Boots until ``up.target``, one of ``units``, is reached.

    Args:
        units: by their path below /etc/systemd/system.
    """
    place, unit_files, shared = folder / "machine", folder / "units", folder / "shared"
    for one in (place, unit_files, shared):
        one.mkdir()
    shared.chmod(0o777)
    for name, text in units.items():
        (unit_files / name).parent.mkdir(exist_ok=True)
        (unit_files / name).write_text(text)
    with (folder / "console").open("w") as console:
        process = subprocess.Popen(
            ["unshare", "-m", "bash", "-c", BOOT, "boot", place, unit_files, shared,
             f"--bind-ro={ROOT}:{CHECKOUT}", "--console=pipe", "--machine=qtrace-test",
             f"systemd.unit={TARGET}"],
            env={"TOOLS": str(TOOLS), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
    try:

        def leader() -> str:
            said = (folder / "console").read_text()
            assert process.poll() is None, said
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for pid in children.split():
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    state = Booted(int(pid), shared).show(TARGET, "ActiveState")
                    return pid if state == "active" else ""
            return ""

        yield Booted(int(until(leader, "the machine")), shared)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
