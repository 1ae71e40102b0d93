"""Who waits for whom, as a drawing: those that wait for nobody's end stand on the right."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from qtrace.export.page import tag

WIDTH, HEIGHT, ACROSS, BETWEEN, MARGIN = 240, 50, 100, 16, 14
# Letters that fit; the whole text is shown below, and when it is pointed at.
LABEL, DOES, WHAT = 33, 37, 17
# Of more the drawing would be none to look at.
MOST = 60


def picture(parties: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]]) -> ET.Element:
    """The drawing.

    Args:
        parties: each with ``key``, ``kind``, ``label``, ``does``, ``found``.
        edges: each with ``who`` and ``whom`` (keys), and ``what``.
    """
    shown = list(parties[:MOST])
    keys = [str(one["key"]) for one in shown]
    known = set(keys)
    pairs = [e for e in edges if e["who"] in known and e["whom"] in known]
    layer = layers(keys, [(str(e["who"]), str(e["whom"])) for e in pairs])
    place = _places(keys, layer, pairs)
    wide = max(x for x, _y in place.values()) + WIDTH + MARGIN
    high = max(y for _x, y in place.values()) + HEIGHT + MARGIN
    arrow = tag(
        "marker", tag("path", d="M0,0 L9,4.5 L0,9 z"),
        id="arrow", viewBox="0 0 9 9", refX=9, refY=4.5, markerWidth=9, markerHeight=9,
        orient="auto",
    )  # fmt: skip
    drawn = [_edge(edge, place) for edge in pairs]
    boxes = [_box(one, number, place[str(one["key"])]) for number, one in enumerate(shown)]
    svg = tag(
        "svg", tag("defs", arrow), *drawn, *boxes,
        width=wide, height=high, viewBox=f"0 0 {wide} {high}", role="img",
        aria_label="who waits for whom",
    )  # fmt: skip
    return tag("div", svg, class_="graph", tabindex="0")


def layers(keys: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """How far from the left each one stands: beyond all that wait for it, but for what closes a
    circle."""
    after: dict[str, list[str]] = {key: [] for key in keys}
    for who, whom in pairs:
        after[who].append(whom)
    waited = {whom for _who, whom in pairs}
    found = dict.fromkeys(keys, 0)
    # Those that nobody waits for begin; in a circle whoever is first.
    order: list[str] = []
    done: set[str] = set()
    open_: set[str] = set()
    forward: list[tuple[str, str]] = []
    for first in [*(key for key in keys if key not in waited), *keys]:
        if first in done:
            continue
        stack = [(first, iter(after[first]))]
        open_.add(first)
        while stack:
            key, rest = stack[-1]
            for whom in rest:
                if whom in open_:
                    continue
                forward.append((key, whom))
                if whom not in done:
                    stack.append((whom, iter(after[whom])))
                    open_.add(whom)
                    break
            else:
                stack.pop()
                open_.discard(key)
                done.add(key)
                order.append(key)
    for key in reversed(order):
        for who, whom in forward:
            if who == key:
                found[whom] = max(found[whom], found[key] + 1)
    return found


def _places(
    keys: Sequence[str], layer: Mapping[str, int], pairs: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[int, int]]:
    """Left upper corners; each stands about as high as those that wait for it."""
    found: dict[str, tuple[int, int]] = {}
    for number in range(max(layer.values(), default=0) + 1):
        own = [key for key in keys if layer[key] == number]

        def height(key: str) -> float:
            from_ = [found[e["who"]][1] for e in pairs if e["whom"] == key and e["who"] in found]
            return sum(from_) / len(from_) if from_ else 0.0

        for row, key in enumerate(sorted(own, key=height)):
            found[key] = (MARGIN + number * (WIDTH + ACROSS), MARGIN + row * (HEIGHT + BETWEEN))
    return found


def _box(one: Mapping[str, Any], number: int, at: tuple[int, int]) -> ET.Element:
    x, y = at
    classes = [str(one["kind"]).replace(" ", "-"), *(["bad"] if one["found"] else [])]
    group = tag(
        "g",
        tag("title", f"{one['label']}: {one['does']}"),
        tag("rect", x=x, y=y, width=WIDTH, height=HEIGHT, rx=6),
        tag("text", _short(one["label"], LABEL), x=x + 10, y=y + 20),
        tag("text", _short(one["does"], DOES), x=x + 10, y=y + 38, class_="faint"),
        class_=" ".join(classes),
    )
    return tag("a", group, href=f"#party-{number}")


def _edge(edge: Mapping[str, Any], place: Mapping[str, tuple[int, int]]) -> ET.Element:
    (x0, y0), (x1, y1) = place[edge["who"]], place[edge["whom"]]
    y0, y1 = y0 + HEIGHT // 2, y1 + HEIGHT // 2
    if x1 > x0:
        x0 += WIDTH
        bend = ACROSS // 2
        path = f"M{x0},{y0} C{x0 + bend},{y0} {x1 - bend},{y1} {x1},{y1}"
        label = (x1 - 6, y1 - 6, "end")
    else:
        # It closes a circle: below both.
        low = max(y0, y1) + HEIGHT // 2 + BETWEEN // 2
        x0, x1 = x0 + WIDTH // 2, x1 + WIDTH // 2
        y0, y1 = y0 + HEIGHT // 2, y1 + HEIGHT // 2
        path = f"M{x0},{y0} C{x0},{low + BETWEEN} {x1},{low + BETWEEN} {x1},{y1}"
        label = ((x0 + x1) // 2, low, "middle")
    text = _short(edge["what"], WHAT)
    return tag(
        "g",
        tag("path", d=path, marker_end="url(#arrow)"),
        tag("text", text, x=label[0], y=label[1], text_anchor=label[2], class_="faint")
        if text
        else None,
        tag("title", str(edge["what"])) if edge["what"] else None,
    )


def _short(text: object, letters: int) -> str:
    whole = str(text)
    return whole if len(whole) <= letters else f"{whole[: letters - 1]}…"
