"""A bottom half that cannot run: the only thread that could waits elsewhere."""

from __future__ import annotations

from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold


class Stranded:
    """The verdict ``stranded`` of any bottom half: two looks that show the same wait."""

    def __init__(self, trace: Frames, _threshold: Threshold) -> None:
        self._trace = trace
        self._findings: list[Finding] = []
        self._pending = self._unsure = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        instances = part.instances
        found = instances[part.own & (instances["verdict"] == "stranded").to_numpy()]
        for index, name, scheduled, row in zip(
            found.index, found["name"], found["scheduled_ns"], found["scheduled_row"], strict=True
        ):
            proof = part.proofs[int(index)]
            rows = tuple(sorted({int(row), *proof.rows}))
            self._findings.append(
                Finding(
                    "stranded", self._trace, proof.sentence, name, proof.pending_in, proof.tid,
                    proof.thread, proof.role, proof.time_ns, proof.time_ns - int(scheduled), "ns",
                    rows, level="error", instance=int(part.number[int(index)]),
                    facts={"polls": proof.polls},
                )
            )  # fmt: skip
        open_end = part.own & (instances["end"] == "").to_numpy()
        unsure = (instances["verdict"] == "inconclusive").to_numpy() & open_end
        self._unsure += int(unsure.sum())
        self._pending += int((part.own & (instances["verdict"] == "pending").to_numpy()).sum())

    def end(self) -> Seen:
        """See ``Fold``."""
        unsure = self._unsure
        doubts = [f"what became of {unsure:,} of them is not certain"] if unsure else []
        return Seen(self._findings, doubts, {"pending": self._pending})


LINT = Lint(
    name="stranded",
    sentence="a bottom half cannot run: the only thread that could waits elsewhere",
    threshold=None,
    why="",
    needs="",
    evidence="its schedule, and two looks at the waiting thread that show the same wait",
    source="RFC of 5 June 2024 on qemu-devel (20240605120848.358654-1-f.ebner@proxmox.com)",
    fold=Stranded,
    qmp=False,
)
