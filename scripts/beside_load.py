"""Run a command beside others that want the processors: ``python -m scripts.beside_load COMMAND``.

One busy process per processor (nice 0, each on its own) computes from before the command's start
until after its end; then they are ended, by pid. With ``--times N`` the command runs so often, one
after the other, and all runs must succeed. ``--record WHAT`` writes the count into docs/soak.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from qtrace.host.with_parent import end_with_parent
from scripts.soak_table import add_rows

# It says that it runs before it computes; it ends with its parent, whatever happens to that.
BUSY = "import os; os.write(1, b'.')\nwhile True: pass"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=1, metavar="N", help="run it so often")
    parser.add_argument("--record", metavar="WHAT", help="a row of docs/soak.md that says N of N")
    parser.add_argument("--case", default="", help="the row's case")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("there is no command")
    good = 0
    with busy() as number:
        for run in range(1, options.times + 1):
            began = time.monotonic()
            status = subprocess.run(command).returncode
            good += status == 0
            say(f"run {run}: status {status} after {time.monotonic() - began:.1f} s")
    say(f"{good} of {options.times} succeeded beside {number} busy processes")
    if options.record:
        add_rows({(options.record, options.case): f"{good} of {options.times}"})
    return 0 if good == options.times else 1


@contextmanager
def busy() -> Iterator[int]:
    """A busy process on each processor; yields how many."""
    processors = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for processor in processors:
            process = subprocess.Popen(
                [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, bufsize=0,
                preexec_fn=end_with_parent,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {processor})
            assert process.stdout is not None
            process.stdout.read(1)
        yield len(processors)


def say(text: str) -> None:
    print(f"beside_load: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
