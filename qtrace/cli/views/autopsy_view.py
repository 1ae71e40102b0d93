"""What an autopsy says, on any machine: the sentences of the looks that it was made by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from qtrace.autopsy.archive import Autopsy
from qtrace.cli.output import print_json, print_page, stderr, stdout
from qtrace.cli.views.look_view import FINDING, NOTE, say, tell
from qtrace.cli.views.verdict_view import inert
from qtrace.errors import AutopsyUnreadable, ExitStatus


def show(path: Path, output_format: str) -> int:
    """Print it; the exit status is that of ``qtrace inspect`` when it was made.

    Raises:
        AutopsyUnreadable
    """
    found = Autopsy(path)
    document = found.json("inspect.json")
    if output_format == "json":
        about = {"about": found.about, "end": found.end, "members": sorted(found.members)}
        print_json({**(document or {"verdict": None}), "autopsy": about})
    elif output_format == "html":
        from qtrace.export.look_page import look_page

        if document is None:
            raise AutopsyUnreadable(f"there are no looks in {path}", f"{_members(path)} it has")
        print_page(look_page(document, f"an autopsy, made {found.about.get('wall_clock')}"))
    else:
        console = stdout()
        target = found.about.get("target", {})
        pid, when = inert(target.get("pid")), inert(found.about.get("wall_clock"))
        why = f", {inert(found.about['why'])}" if found.about.get("why") else ""
        say(console, f"autopsy of process {pid}, made {when}{why}")
        if found.end is not None and "again/threads/stat" not in found.members:
            say(console, "the process ended while it was made", style=NOTE)
        text = found.members.get("inspect.txt", b"").decode("utf-8", "replace")
        for line in text.splitlines():
            say(console, line)
        if not text:
            sentence = f"there are no looks in it: {_members(path)} it has"
            tell(console, "inconclusive", NOTE, sentence)
    for what in (found.end or {}).get("missing", []):
        stderr().print(f"warning: not in it: {inert(what)}")
    if found.end is None:
        stderr().print("warning: it is cut off: what came later is not known")
    status = (found.end or {}).get("status")
    if status is None and document is not None:
        status = _status_of(document)
    known = (ExitStatus.OK, ExitStatus.FINDING)
    return next((one for one in known if one == status), ExitStatus.INCONCLUSIVE)


def print_headline(console: Console, document: dict[str, Any]) -> None:
    """The worst that its looks showed, in one line; where that is nothing, why the guest may stand
    still nevertheless."""
    for finding in document["findings"][:1]:
        tell(console, finding["verdict"], FINDING, finding["sentence"])
    if not document["findings"]:
        why = document["unclear"]
        text = why[0] if why else "no event loop and no block request was seen stuck"
        tell(console, document["verdict"], NOTE if why else "", text)
        for remark in document["remarks"][:1]:
            say(console, f"  {remark}")


def _members(path: Path) -> str:
    return f"tar --zstd -tvf {path} lists what"


def _status_of(document: dict[str, object]) -> ExitStatus:
    """Of one that was cut off after its looks."""
    findings = document.get("findings")
    proven = isinstance(findings, list) and any(
        isinstance(one, dict) and one.get("proof") and one.get("verdict") != "computes"
        for one in findings
    )
    return ExitStatus.FINDING if proven else ExitStatus.INCONCLUSIVE
