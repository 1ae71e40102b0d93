"""Recordings as one HTML file that needs nothing else: no network, no server, no other file.

The page may run the two scripts in it and use its own style sheet, by their hashes; everything else
is forbidden to it (Content-Security-Policy). What a target named stands in it as data, which the
script writes as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from qtrace import __version__
from qtrace.analysis.report import exit_status
from qtrace.analysis.report_types import Report
from qtrace.analysis.traces import Trace
from qtrace.analysis.verdicts import SEVERITY
from qtrace.analysis.wording import not_seen_sentence, verdict_sentence
from qtrace.errors import OutputFailed
from qtrace.export.drawing import Drawing, drawing_of
from qtrace.export.groundwork import Groundwork
from qtrace.export.output_file import check_suffix, replacing
from qtrace.export.report_data import inert, recording_data

SUFFIXES = (".html", ".htm")
# Of the file, in bytes.
LARGEST = 5_000_000
# Runs that are shown one by one, in all; fewer where the file gets too large.
RUNS = 120_000
LIBRARY = "uPlot-1.6.32"
# Of lints, lists and notes that are shown.
SHOWN = 200
# Recordings with a timeline, the worst first; of more only the verdict is shown.
DRAWN = 24


def write_html(
    report: Report, drawings: Sequence[Drawing], target: Path, force: bool = False
) -> int:
    """Write the page; how many bytes it has.

    Args:
        report: of all recordings together.
        drawings: of each of them, or of the first ``DRAWN``.

    Raises:
        OutputExists, OutputFailed
    """
    check_suffix(target, SUFFIXES)
    page = page_of(report, drawings)
    with replacing(target, force) as file:
        file.write(page)
    return len(page)


def drawings_of(
    traces: Sequence[Trace], report: Report, grounds: Sequence[Groundwork]
) -> list[Drawing]:
    """Those of the recordings that get one, the worst first.

    Args:
        grounds: each has seen one of them.

    Raises:
        TraceUnreadable
    """
    found = {one["path"]: 0 for one in report["traces"]}
    for away in report["stuck"]:
        found[str(away["evidence"]["trace"])] += 1000
    for half in report["bottom_halves"]:
        for finding in half["findings"]:
            found[str(finding["evidence"]["trace"])] += 10
    for lint in report["lints"]:
        found[str(lint["trace"])] += len(lint["findings"])
    pairs = zip(traces, grounds, strict=True)
    worst = sorted(pairs, key=lambda one: -found[str(one[0].path)])[:DRAWN]
    return [drawing_of(one, report, ground) for one, ground in worst]


def page_of(report: Report, drawings: Sequence[Drawing]) -> bytes:
    """The page, of ``LARGEST`` bytes at most."""
    runs = RUNS // max(len(drawings), 1)
    while True:
        page = _page(_data(report, drawings, runs))
        if len(page) <= LARGEST:
            return page
        if runs < 10:
            raise OutputFailed(
                f"the page would have {len(page):,} bytes", "name fewer recordings at a time"
            )
        runs = runs * min(LARGEST * 9 // 10 * 100 // len(page), 80) // 100


def _data(report: Report, drawings: Sequence[Drawing], runs: int) -> dict[str, Any]:
    halves = sorted(report["bottom_halves"], key=lambda half: SEVERITY.index(half["verdict"]))
    seen = [half for half in halves if half["verdict"] != "not-seen"]
    words = [["stuck", inert(one["sentence"], 1000)] for one in report["stuck"]]
    words += [
        [half["verdict"], inert(verdict_sentence(half, bool(report["stuck"])), 1000)]
        for half in seen
    ]
    if not seen:
        words.append(["not-seen", inert(not_seen_sentence(report), 1000)])
    words += [["inconclusive", inert(note, 1000)] for note in report["notes"]]
    return {
        "version": __version__,
        "verdict": report["verdict"],
        "status": int(exit_status(report)),
        "complete": report["complete"],
        "lost": report["lost_events"],
        "words": words[:SHOWN],
        "more_words": max(len(words) - SHOWN, 0),
        "bottom_halves": [
            {
                "name": inert(half["name"]),
                "scheduled": half["scheduled"],
                "verdict": half["verdict"],
                "verdicts": half["verdicts"],
                "notes": [inert(note, 600) for note in half["notes"]],
            }
            for half in halves[:SHOWN]
        ],
        "held": [inert(one["sentence"], 600) for one in report["held"]][:SHOWN],
        "computing": [inert(one["sentence"], 600) for one in report["computing"]][:SHOWN],
        "calls": [
            {"name": inert(one["name"]), "count": one["count"], "roles": one["roles"]}
            for one in report["calls"]
        ],
        "late_replies": [
            {key: inert(value) if isinstance(value, str) else value for key, value in one.items()}
            for one in report["late_replies"][:SHOWN]
        ],
        "lints": _lints(report),
        "warnings": [inert(text, 600) for text in report["warnings"]][:SHOWN],
        "traces": [_trace(one) for one in report["traces"][:SHOWN]],
        "more_traces": max(len(report["traces"]) - SHOWN, 0),
        "targets": len({one["target"].get("build_id") for one in report["traces"]}),
        "recordings": [recording_data(one, runs) for one in drawings],
        "without_timeline": len(report["traces"]) - len(drawings),
    }


def _trace(one: Mapping[str, Any]) -> dict[str, Any]:
    target = {key: inert(value, 300) for key, value in one["target"].items()}
    facts = {key: inert(one[key], 300) for key in ("path", "recorder", "wall_clock")}
    return {
        **facts,
        "target": target,
        "complete": one["complete"],
        "lost": one["lost_events"],
        "exit": "" if one["exit"] is None else inert(json.dumps(one["exit"])),
        "silent": [inert(name) for name in one["silent"]],
    }


def _lints(report: Report) -> list[dict[str, Any]]:
    """What each lint answered, of all recordings; the findings stand with their recording."""
    found: dict[str, dict[str, Any]] = {}
    for lint in report["lints"]:
        one = found.setdefault(
            lint["lint"],
            {"name": lint["lint"], "threshold": lint["threshold"], "answers": {}, "reasons": []},
        )
        one["answers"][lint["result"]] = one["answers"].get(lint["result"], 0) + 1
        if lint["reason"] and lint["reason"] not in one["reasons"] and len(one["reasons"]) < 3:
            one["reasons"].append(inert(lint["reason"], 400))
    return list(found.values())


def _page(data: Mapping[str, Any]) -> bytes:
    style = f"{_asset(f'{LIBRARY}.min.css')}\n{_asset('report.css')}"
    scripts = [_asset(f"{LIBRARY}.min.js"), _asset("report.js")]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {' '.join(map(_hash, scripts))}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    # As JSON and as the content of an element: nothing in it ends the element.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    parts = {
        "POLICY": policy,
        "STYLE": style,
        "LICENCE": _asset("uPlot-LICENSE").replace("--", "- -"),
        "DATA": text,
        "LIBRARY": scripts[0],
        "SCRIPT": scripts[1],
    }
    page = _asset("report.html")
    pieces = page.split("@@")
    return "".join(
        parts[piece] if number % 2 else piece for number, piece in enumerate(pieces)
    ).encode()


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _asset(name: str) -> str:
    return (resources.files("qtrace.export") / "assets" / name).read_text(encoding="utf-8")
