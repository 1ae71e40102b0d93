"""What a register may be known to hold, in the terms of the code that put it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import capstone


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, or a link-time address that the code makes."""

    value: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a static variable at this link-time address."""

    address: int


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call to the function at this link-time address returned."""

    function: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """Memory that nobody else knows yet: what the call at this link-time address allocated."""

    call: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The halves of a vector register."""

    low: Value | None
    high: Value | None


@dataclass(frozen=True, slots=True)
class Argument:
    """What a register held when the function was entered."""

    register: str


Value = Constant | Loaded | Returned | Fresh | Pair | Argument
State = dict[str, Value]
Step = Callable[[capstone.CsInsn, State], State]
