"""What `qtrace inspect` says as one HTML file: the answer, who waits for whom, stacks below it.

From the JSON of `qtrace inspect --format json` alone, so that an autopsy's can be drawn, too.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import Any

from qtrace.export.page import Child, lines, page, section, table, tag
from qtrace.export.waiting_picture import MOST, picture
from qtrace.inspection.answer import slow_words

Document = Mapping[str, Any]
GOOD, WARN, BAD = "good", "warn", "bad"
# Of lists that are shown.
SHOWN = 500


def look_page(document: Document, about: str = "") -> bytes:
    """The page.

    Args:
        document: as `qtrace inspect --format json` prints it.
        about: where it comes from, besides the target.
    """
    target = document.get("target") or {}
    where = f"core {target['core']}" if target.get("core") else f"pid {target.get('pid')}"
    facts = [target.get("program"), target.get("version"), where, about]
    text = ", ".join(str(fact) for fact in facts if fact)
    return page("qtrace inspect", text, *_answer(document), *_graph(document),
                *_contexts(document), *_threads(document), *_jobs(document),
                *_block(document))  # fmt: skip


def _answer(document: Document) -> Iterable[ET.Element]:
    findings = document.get("findings") or []
    for one in findings:
        kind = str(one["verdict"])
        tone = BAD if one.get("proof") and kind != "computes" else WARN
        proof = one.get("proof") or "one look cannot show whether it stays so"
        yield tag("p", tag("b", f"{kind}:"), one["sentence"], tag("br"), proof,
                  class_=f"verdict {tone}")  # fmt: skip
    for reason in document.get("unclear") or []:
        yield tag("p", tag("b", "inconclusive:"), reason, class_=f"verdict {WARN}")
    if not findings and not document.get("unclear"):
        text = "no event loop is stuck"
        if slow := document.get("slow_requests"):
            text += f"; {slow_words(slow)}"
        elif document.get("block"):
            text += ", and no block request"
        yield tag("p", tag("b", "clear:"), text, class_=f"verdict {GOOD}")
    remarks = document.get("remarks") or []
    if remarks:
        yield tag("ul", *(tag("li", remark) for remark in remarks))


def _graph(document: Document) -> Iterable[ET.Element]:
    graph = document.get("waiting")
    if not graph:
        return
    parties, edges = graph["parties"], graph["edges"]
    if not parties:
        yield section("Who waits for whom", tag("p", "Nobody waits for another one."))
        return
    stacks = {f"thread {one['tid']}": one["stack"] for one in document.get("threads") or []}
    names = {one["key"]: one["label"] for one in parties}
    folded = [
        _party(one, number, stacks.get(one["key"], []),
               [e for e in edges if e["who"] == one["key"]], names)
        for number, one in enumerate(parties)
    ]  # fmt: skip
    more = len(parties) - MOST
    yield section(
        "Who waits for whom",
        picture(parties, edges),
        tag("p", f"{more} more are listed below.", class_="loud") if more > 0 else None,
        *folded,
    )


def _party(
    one: Document, number: int, stack: list[str], edges: list[Document], names: Mapping[str, str]
) -> ET.Element:
    waits = [
        f"waits for {names.get(e['whom'], e['whom'])}{e['what'] and ': '}{e['what']}" for e in edges
    ]
    return tag(
        "details",
        tag("summary", tag("b", one["label"]), f" {one['does']}"),
        # A link to what is folded unfolds it.
        tag("div", *(tag("p", text) for text in waits), _stack(stack), id=f"party-{number}"),
        class_=BAD if one["found"] else None,
    )


def _stack(frames: list[str]) -> Child:
    return lines("pre", frames) if frames else None


def _contexts(document: Document) -> Iterable[ET.Element]:
    rows: list[list[Child]] = []
    for one in document.get("contexts") or []:
        halves, handlers = one["bottom_halves"], one["handlers"]
        names = "?" if halves is None else ", ".join(half["name"] or "?" for half in halves)
        rows.append([
            one["name"] or one["ctx"], str(one["tid"] or ""), names,
            "?" if handlers is None else str(len(handlers)),
        ])  # fmt: skip
    yield section("Contexts", table(["context", "run by", "pending", "fd handlers"], rows, 1))


def _threads(document: Document) -> Iterable[ET.Element]:
    folded = []
    for one in document.get("threads") or []:
        polls = [poll["context"] or "?" for poll in one["polls"]]
        does = one["blocked_in"] or "runs"
        does += f", polls {' inside '.join(polls)}" if polls else ""
        does += f", {one['waits_outside']}" if one["waits_outside"] else ""
        name = f"{one['tid']} {one['name'] or ''}".rstrip()
        head = tag("summary", tag("b", f"{name} ({one['role']})"), f" {does}")
        broken = None if one["complete"] or not one["stack"] else tag("p", "The chain breaks off.")
        folded.append(tag("details", head, _stack(one["stack"]), broken))
    yield section("Threads", *folded[:SHOWN])


def _jobs(document: Document) -> Iterable[ET.Element]:
    jobs = document.get("jobs")
    if not jobs:
        return
    yield section("Jobs", *(
        tag("details", tag("summary", tag("b", one["id"]), f" {one['type']} {one['status']}"),
            _stack(one["stack"]))
        for one in jobs[:SHOWN]
    ))  # fmt: skip


def _block(document: Document) -> Iterable[ET.Element]:
    block = document.get("block")
    if not block:
        return
    requests = block["requests"]
    if requests:
        rows: list[list[Child]] = [
            [one["kind"] if one["bytes"] is None
             else f"{one['kind']} of {one['bytes']} at {one['offset']}",
             one["node"] or "?", one["device"] or "", one["waits"]]
            for one in requests[:SHOWN]
        ]  # fmt: skip
        yield section("Requests in flight", table(["request", "node", "device", "waits"], rows))
    nodes = block["nodes"]
    if nodes:
        rows = [
            [one["name"], one["driver"] or "no medium", one["file"] or "",
             ", ".join(f"{edge} {child}" for edge, child in one["children"].items()),
             str(one["requests"])]
            for one in nodes[:SHOWN]
        ]  # fmt: skip
        yield section("Block nodes", table(["node", "driver", "file", "on", "requests"], rows, 1))
    coroutines = (block["coroutines"] or {}).get("others") or []
    if coroutines:
        yield section("Coroutines", *(
            tag(
                "details",
                tag("summary", tag("b", one["entry"]), f" {one['waits'] or one['state']}"),
                _stack(one["stack"]),
            )
            for one in coroutines[:SHOWN]
        ))  # fmt: skip
