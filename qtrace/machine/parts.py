"""Parts of an object that are made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class part(cached_property[T]):  # noqa: N801 (as the one that it is made from)
    """A cached property whose making keeps no other object's waiting.

    Before Python 3.12 a cached property has one lock for all objects of its class: who waits for
    the kernel's answer about one process would keep everybody from asking about another.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        super().__init__(make)
        self.lock = nullcontext()
