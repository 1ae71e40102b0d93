"""Make the recordings of analysis/samples again, on the two QEMUs that the tests use.

Run as root from the top of the tree: ``.venv/bin/python -m scripts.samples [-o FOLDER] [NAME...]``.
What each must show stands in analysis/samples/labels.toml, and tests/unit/test_samples.py holds
it to that. Counts that are left to chance (``forced = false``) change with each making: write the
new ones into the labels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from qtrace.trace.arrow import PARQUET
from qtrace.trace.convert import convert
from scripts.samples import everything, hanging, watching
from scripts.samples.machine import NEW, OLD, ROOT, neutral_qemu

SAMPLES = ROOT / "analysis" / "samples"

# CSV where a reader may want to look into the file; what belongs together is made together.
RECIPES: dict[tuple[str, ...], Callable[..., None]] = {
    ("vcpu-poll-7.2-tcg.csv",): watching.steered(OLD, "tcg"),
    ("vcpu-poll-10.0-kvm.parquet",): watching.steered(NEW, "kvm"),
    ("main-loop-7.2-tcg.parquet",): watching.control(OLD, "tcg"),
    ("main-loop-10.0-kvm.parquet",): watching.control(NEW, "kvm"),
    ("stock-7.2-tcg.parquet", "held-7.2-tcg.parquet", "rerouted-7.2-tcg.parquet"): (
        watching.compared(OLD, "tcg")
    ),
    ("load-10.0-tcg.parquet",): watching.scenario("load", NEW, "tcg"),
    ("delete-7.2-kvm.parquet",): watching.scenario("delete", OLD, "kvm"),
    ("stranded-10.0-tcg.csv",): watching.scenario("stranded", NEW, "tcg"),
    ("crash-7.2-tcg.csv",): watching.scenario("crash", OLD, "tcg"),
    ("late-reply-stock-10.0-kvm.parquet",): watching.real_saves(NEW, "kvm"),
    ("late-reply-rerouted-10.0-kvm.parquet",): watching.real_saves(NEW, "kvm", "iohandler"),
    ("stuck-7.2-tcg.csv",): hanging.stuck(OLD, "tcg", released=True),
    ("stuck-10.0-kvm.csv",): hanging.stuck(NEW, "kvm", released=False),
    ("busy-10.0-tcg.parquet",): hanging.busy(NEW, "tcg"),
    ("all-pflash-7.2-kvm.parquet",): everything.pflash(OLD),
    ("all-migrate-10.0-kvm.parquet",): everything.bql_dropped(NEW),
    ("all-qtest-7.2.parquet",): everything.qtest(OLD),
    ("all-stranded-7.2-tcg.parquet",): everything.stranded(OLD),
    ("all-save-7.2-tcg.parquet",): everything.real_save(OLD),
    ("all-save-rerouted-7.2-tcg.parquet",): everything.real_save(OLD, "iohandler"),
    ("all-main-loop-7.2-tcg.parquet",): everything.control(OLD),
    ("all-idle-7.2-tcg.parquet",): everything.idle(OLD),
    ("all-bench-7.2.parquet",): everything.tool(OLD),
    ("all-bench-native-7.2.parquet",): everything.tool(OLD, "-n"),
    ("all-daemon-10.0.parquet",): everything.daemon(NEW),
}


def main() -> None:
    known = [name for names in RECIPES for name in names]
    parser = argparse.ArgumentParser(prog="samples", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=SAMPLES, metavar="FOLDER")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them when none is given")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(known):
        parser.error(f"no such sample: {', '.join(sorted(unknown))}")
    with neutral_qemu():
        for names, make in RECIPES.items():
            if not chosen.names or set(names) & set(chosen.names):
                record(names, make, chosen.output)


def record(names: tuple[str, ...], make: Callable[..., None], output: Path) -> None:
    """Make the samples of one recipe."""
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        traces = [Path(folder) / f"{number}.trace" for number in range(len(names))]
        make(*traces)
        for name, trace in zip(names, traces, strict=True):
            made = output / name
            convert(trace, made, force=True)
            if made.suffix == ".parquet":
                pack(made)
            print(f"{name}: {made.stat().st_size:,} bytes", flush=True)


def pack(path: Path) -> None:
    """The same rows, packed as small as can be: a repository keeps every version of a sample."""
    pq.write_table(pq.read_table(path), path, **PARQUET, compression_level=19)


if __name__ == "__main__":
    main()
