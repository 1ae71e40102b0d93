"""Run the benchmarks and print one table: ``python -m benchmarks [NAME...] [--pairs N]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks import (
    alarms,
    all_events,
    analysis,
    arming,
    autopsy,
    checking,
    cost,
    day,
    first_stack,
    fleet,
    gdb_recorder,
    growth,
    host,
    inspect,
    light,
    pictures,
    requests,
    times,
    watching,
)
from benchmarks.pairs import Row

BENCHMARKS: dict[str, Callable[[int], list[Row]]] = {
    "arming": arming.run,
    "gdb": gdb_recorder.run,
    "inspect": inspect.run,
    "requests": requests.run,
    "light": light.run,
    "stacks": first_stack.run,
    "watching": watching.run,
    "all": all_events.run,
    "cost": cost.run,
    "times": times.run,
    "check": checking.run,
    "autopsy": autopsy.run,
    "growth": growth.run,
    "host": host.run,
    "alarms": alarms.run,
    "analysis": analysis.run,
    "pictures": pictures.run,
    "fleet": fleet.run,
    "day": day.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
    parser.add_argument("--pairs", type=int, default=100, help="interleaved pairs (default 100)")
    options = parser.parse_args()
    print("| what | measured | ratio | beside | goal |")
    print("|---|---|---|---|---|")
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr)
        for row in BENCHMARKS[name](options.pairs):
            print(f"| {' | '.join(row)} |", flush=True)


main()
