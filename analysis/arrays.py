"""Columns of frames as arrays, and back: texts by code, integers that may be absent, row numbers.

In a frame an absent number is ``<NA>`` and an absent text is empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Numbers = npt.NDArray[np.int64]


def code_of(column: pd.Series, texts: tuple[str, ...]) -> npt.NDArray[np.int8]:
    """For each row of a categorical column, which of a few texts it is; -1 for all others."""
    table = pd.Index(texts).get_indexer(column.cat.categories).astype(np.int8)
    codes: npt.NDArray[np.int8] = np.append(table, np.int8(-1))[column.array.codes]
    return codes


def nullable(values: npt.NDArray[np.signedinteger[Any]]) -> pd.arrays.IntegerArray:
    """Integers of which the negative ones are absent."""
    return pd.arrays.IntegerArray(values, values < 0)


def filled(values: pd.Series) -> Numbers:
    """The other way round: int64 with -1 for what is absent."""
    return np.asarray(values.to_numpy(np.int64, na_value=-1), np.int64)


def find_rows(rows: Numbers, wanted: Numbers) -> tuple[Numbers, Numbers]:
    """Where in ``rows`` each wanted number is: positions there, and which ones were found."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    at = ordered.searchsorted(wanted)
    there = np.flatnonzero(at < len(rows))
    there = there[ordered[at[there]] == wanted[there]]
    return order[at[there]], there
