"""Labels of metrics out of words that are not ours: few, short, printable, each different."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping

LONGEST = 120
# What is too much to be told by itself is told together.
OTHER = "other"
MOST_REASONS = 10
_NUMBER = re.compile(r"\d+")


def label(text: str) -> str:
    """Words of a guest's, which may be any bytes: printable, and not long."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def unique_label(text: str, taken: Container[str]) -> str:
    """A label that is not ``taken``: the later one is told apart by its number."""
    name = unique = label(text)
    number = 1
    while unique in taken or unique == OTHER:
        number += 1
        unique = f"{name}~{number}"
    return unique


def reasons(counts: Mapping[str, int]) -> dict[str, int]:
    """How often, by sentences that say why: pids and other numbers in them are N."""
    added: Counter[str] = Counter()
    for reason, count in counts.items():
        added[label(_NUMBER.sub("N", reason))] += count
    kept = dict(sorted(added.items(), key=lambda item: -item[1])[:MOST_REASONS])
    if rest := added.total() - sum(kept.values()):
        kept[OTHER] = kept.get(OTHER, 0) + rest
    return kept
