"""HTML pages without any script: text that is only ever text, one style sheet, nothing else.

Elements are made as a tree, which the standard library writes with everything escaped; the page's
policy (Content-Security-Policy) forbids it all but its own style sheet, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import xml.etree.ElementTree as ET
from functools import cache
from importlib import resources

from qtrace import __version__
from qtrace.export.report_data import inert

Child = ET.Element | str | None
# Of a text from a target.
LETTERS = 2000


def tag(name: str, /, *children: Child, **attributes: object) -> ET.Element:
    """An element; text in it, and in its attributes, is made harmless. ``class_`` is ``class``, and
    ``_`` in the middle of a name is ``-``."""
    found = ET.Element(name)
    for key, value in attributes.items():
        if value is not None:
            found.set(key.rstrip("_").replace("_", "-"), inert(value, LETTERS))
    last: ET.Element | None = None
    for child in children:
        if isinstance(child, ET.Element):
            found.append(child)
            last = child
        elif child is not None:
            text = inert(child, LETTERS)
            if last is None:
                found.text = (found.text or "") + text
            else:
                last.tail = (last.tail or "") + text
    return found


def lines(name: str, texts: list[str], /, **attributes: object) -> ET.Element:
    """An element of several lines, as ``pre``."""
    found = tag(name, **attributes)
    found.text = "\n".join(inert(text, LETTERS) for text in texts)
    return found


def table(titles: list[str], rows: list[list[Child]], numbers: int = 0) -> ET.Element:
    """A table whose last ``numbers`` columns are of figures."""

    def cells(kind: str, row: list[Child]) -> list[ET.Element]:
        first = len(row) - numbers
        return [
            tag(kind, cell, class_="number" if place >= first else None)
            for place, cell in enumerate(row)
        ]

    head = tag("tr", *cells("th", [*titles]))
    body = (tag("tr", *cells("td", row)) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def section(title: str, *children: Child) -> ET.Element:
    """A part of a page with its title."""
    return tag("section", tag("h2", title), *children)


def page(title: str, about: str, *parts: Child) -> bytes:
    """A whole page."""
    style = f"{_asset('report.css')}\n{_asset('still.css')}"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sheet = ET.Element("style")
    # Not made harmless: it is ours, and its hash is that of its letters.
    sheet.text = style
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        sheet,
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", about)),
        tag("main", *parts),
        tag("footer", tag("p", f"made by qtrace {__version__}")),
    )
    whole = ET.tostring(tag("html", head, body, lang="en"), encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{whole}\n".encode()


@cache
def _asset(name: str) -> str:
    return (resources.files("qtrace.export") / "assets" / name).read_text(encoding="utf-8")
