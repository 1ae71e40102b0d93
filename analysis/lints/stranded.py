"""A bottom half that cannot run: the only thread that could waits elsewhere."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold


def check(trace: Frames, _threshold: Threshold) -> Seen:
    """The verdict ``stranded`` of any bottom half: two looks that show the same wait."""
    instances = trace.instances
    found = instances[(instances["verdict"] == "stranded").to_numpy()]
    findings = []
    for index, name, scheduled, row in zip(
        found.index, found["name"], found["scheduled_ns"], found["scheduled_row"], strict=True
    ):
        proof = trace.proofs[int(index)]
        rows = tuple(sorted({int(row), *proof.rows}))
        findings.append(
            Finding(
                "stranded", trace, proof.sentence, name, proof.pending_in, proof.tid, proof.thread,
                proof.role, proof.time_ns, proof.time_ns - int(scheduled), "ns", rows,
                level="error", instance=int(index), facts={"polls": proof.polls},
            )
        )  # fmt: skip
    open_end = (instances["end"] == "").to_numpy()
    unsure = (instances["verdict"] == "inconclusive").to_numpy() & open_end
    doubts = [f"what became of {np.sum(unsure):,} of them is not certain"] if unsure.any() else []
    pending = (instances["verdict"] == "pending").sum()
    return Seen(findings, doubts, {"pending": int(pending)})


LINT = Lint(
    name="stranded",
    sentence="a bottom half cannot run: the only thread that could waits elsewhere",
    threshold=None,
    why="",
    needs="",
    evidence="its schedule, and two looks at the waiting thread that show the same wait",
    source="RFC of 5 June 2024 on qemu-devel (20240605120848.358654-1-f.ebner@proxmox.com)",
    check=check,
    qmp=False,
)
