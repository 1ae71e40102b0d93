"""All that looks at a QEMU have shown: for people, as JSON, and as an exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrace.cli.views.block_view import answer_findings_json, blocks_json, print_blocks
from qtrace.cli.views.look_view import (
    look_json,
    print_answer,
    print_look,
    say,
    verdict,
    waiting_json,
)
from qtrace.cli.views.verdict_view import inert
from qtrace.errors import ExitStatus
from qtrace.inspection.waiting_graph import waiting_graph
from qtrace.qemu.aio.findings import COMPUTES, Finding

if TYPE_CHECKING:
    from rich.console import Console

    from qtrace.inspection.answer import Answer
    from qtrace.inspection.held_look import HeldLook
    from qtrace.inspection.looker import Looker
    from qtrace.inspection.request_proof import RequestFinding
    from qtrace.qemu.aio.model import Look


def status(findings: Sequence[Finding | RequestFinding], reasons: Sequence[str]) -> ExitStatus:
    """A finding without proof is inconclusive, and so is none where one may not be seen; of who
    computes nobody can tell whether he comes back."""
    if any(finding.proof and finding.kind != COMPUTES for finding in findings):
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if findings or reasons else ExitStatus.OK


def document(
    looker: Looker,
    look: Look,
    answer: Answer,
    ages_ns: dict[int, int],
    target: dict[str, Any],
    held: HeldLook | None = None,
) -> dict[str, Any]:
    """All of it, JSON-able."""
    return {
        "verdict": verdict(answer.findings, answer.reasons),
        "target": target,
        "paused_ms": held.paused_ms if held else None,
        "did_not_stop": [asdict(thread) for thread in held.awake] if held else [],
        "findings": answer_findings_json(answer),
        "unclear": list(answer.reasons),
        "remarks": [inert(remark) for remark in answer.remarks],
        "slow_requests": answer.slow,
        **look_json(look, looker.name, ages_ns),
        "block": blocks_json(answer.requests.blocks) if answer.requests else None,
        "waiting": waiting_json(waiting_graph(look, answer)),
    }


def print_all(
    console: Console,
    looker: Looker,
    look: Look,
    answer: Answer,
    ages_ns: dict[int, int],
    target: dict[str, Any],
    held: HeldLook | None = None,
) -> None:
    """All of it, for people."""
    where = f"core {target['core']}" if target["core"] else f"pid {target['pid']}"
    version = f" {target['version']}" if target["version"] else ""
    build_id = str(target["build_id"])[:12]
    say(console, f"{target['program']}{version}, {where}, build id {build_id or 'none'}")
    print_look(console, look, looker.name, looker.qemu.shown, ages_ns)
    if answer.requests is not None:
        print_blocks(console, answer.requests.blocks, looker.qemu.shown)
    if held is not None:
        say(console, f"the guest was paused for {held.paused_ms:.1f} ms at most")
        for thread in held.awake:
            say(console, f"did not stop, and is shown as it was: {thread.sentence}")
    console.print()
    print_answer(console, answer)


def target_of(looker: Looker, core: Path | None = None) -> dict[str, Any]:
    target = looker.qemu.describe()
    target["program"] = inert(target["program"])
    return {"pid": target["pid"], "core": inert(core) if core else None, **target}
