"""Begin and end of many things at once: each closing event with the one it closes.

All arrays are codes and positions, nothing is compared as text, and no step looks at one row at a
time: ten million events are paired in about a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Codes = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# numpy sorts integers of 16 bits by counting, longer ones by comparing.
DIGIT = 15


def numbered(first: npt.NDArray[Any], *others: npt.NDArray[Any]) -> Codes:
    """A number, from 0 on, for each combination of values that occurs."""
    codes = pd.factorize(first)[0]
    for column in others:
        own, values = pd.factorize(column)
        if len(values) > 1:
            codes = pd.factorize(codes * len(values) + own)[0]
    return codes


def stable_order(codes: Codes) -> Positions:
    """As ``argsort(kind="stable")`` of numbers from 0 on, digit by digit."""
    highest = int(codes.max(initial=0))
    order = np.argsort((codes & ((1 << DIGIT) - 1)).astype(np.int16), kind="stable")
    shift = DIGIT
    while highest >> shift:
        digit = ((codes[order] >> shift) & ((1 << DIGIT) - 1)).astype(np.int16)
        order = order[np.argsort(digit, kind="stable")]
        shift += DIGIT
    return order


def starts_of(ordered: Codes) -> Mask:
    """Where, in codes that stand together, another one begins."""
    starts = np.ones(len(ordered), np.bool_)
    starts[1:] = ordered[1:] != ordered[:-1]
    return starts


def match(group: Codes, opens: Mask, position: Positions) -> tuple[Positions, Positions]:
    """Pair brackets: inside its group a closing event ends the youngest open one.

    Args:
        group: of each event; those of a group stand together, in time order.
        opens: whether it opens; else it closes.
        position: what stands for it in the result.

    Returns:
        Positions of the beginning and the end of every pair; -1 stands for a beginning before the
        first event or an end after the last.
    """
    # Most are closed by the very next event of their group; the rest is taken level by level.
    pairs = np.zeros(len(group), np.bool_)
    pairs[:-1] = opens[:-1] & ~opens[1:] & (group[1:] == group[:-1])
    at = np.flatnonzero(pairs)
    rest = ~pairs
    rest[at + 1] = False
    begin, end = _match_by_level(group[rest], opens[rest], position[rest])
    return np.concatenate([position[at], begin]), np.concatenate([position[at + 1], end])


def match_single(
    group: Codes, opens: Mask, position: Positions
) -> tuple[Positions, Positions, Positions]:
    """Likewise, where at most one can be open: an opening proves that the one before is over.

    What follows an opening closes it.

    Returns:
        As ``match``, and where each was over: its end, or what was opened next; -1 for nowhere.
    """
    follows = ~starts_of(group)
    closes = np.zeros(len(group), np.bool_)
    closes[1:] = opens[:-1] & ~opens[1:] & follows[1:]
    end = np.flatnonzero(closes)
    begin = end - 1
    alone = np.ones(len(group), np.bool_)
    alone[begin] = alone[end] = False
    # Opened again, and nothing in between.
    anew = np.full(len(group), -1)
    anew[:-1] = np.where(opens[:-1] & opens[1:] & follows[1:], position[1:], -1)
    left, right = np.flatnonzero(alone & opens), np.flatnonzero(alone & ~opens)
    none = np.full(len(group), -1)
    return (
        np.concatenate([position[begin], position[left], none[: len(right)]]),
        np.concatenate([position[end], none[: len(left)], position[right]]),
        np.concatenate([position[end], anew[left], position[right]]),
    )


def _match_by_level(group: Codes, opens: Mask, position: Positions) -> tuple[Positions, Positions]:
    """What opens a level is closed by the next event of that level in its group.

    Closing without opening only shifts all later levels by one.
    """
    starts = starts_of(group)
    total = np.cumsum(np.where(opens, 1, -1))
    number = np.cumsum(starts) - 1
    base = np.concatenate([[0], total])[np.flatnonzero(starts)]
    level = total - base[number] + ~opens
    order = stable_order(level - level.min(initial=0))
    order = order[stable_order(number[order])]
    opens, position = opens[order], position[order]
    follows = ~starts_of(number[order]) & ~starts_of(level[order])
    closed = np.zeros(len(order), np.bool_)
    closed[:-1] = follows[1:]
    ends = np.full(len(order), -1)
    ends[:-1][closed[:-1]] = position[1:][closed[:-1]]
    opened = follows.copy()
    opened[1:] &= opens[:-1]
    alone = ~opens & ~opened
    begin = np.concatenate([position[opens], np.full(alone.sum(), -1)])
    return begin, np.concatenate([ends[opens], position[alone]])
