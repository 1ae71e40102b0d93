"""What all experiments share: in force as long as the context lasts, and undone afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from qtrace.gdb.channel import Message
from qtrace.gdb.gdb_session import Ending, GdbSession
from qtrace.inspection.qemu import LiveQemu
from qtrace.process.process import unless_it_ends
from qtrace.sites.watch import find_watchable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread that did something: its role from all the evidence there is."""

    tid: int
    name: str
    role: str


class Experiment(ABC, Generic[T]):
    """A gdb on a QEMU, for one of its bottom halves, and what it tells.

    Nothing of the target is touched before the context is entered; afterwards it is as before.

    Attributes:
        half: the bottom half; link-time addresses, which ``qemu.bias`` makes run-time ones of.
        seen: what it has told so far.
        ending: the pauses and, after the context, what was not as before.
        target_gone: the target has ended.
    """

    script: str
    """Of gdbscripts/, as ``GdbSession`` wants it."""

    def __init__(self, qemu: LiveQemu, name: str) -> None:
        """``name`` is the bottom half's, or a glob that means one. Raises NoMatch."""
        self.qemu = qemu
        self.half = find_watchable(qemu.scan, name)
        self.config: dict[str, Any] = {}
        self.seen: list[T] = []

    def __enter__(self) -> Self:
        """Raises RecorderUnavailable, RecorderFailed, TargetError: see ``GdbSession``."""
        with unless_it_ends(self.qemu.pid):
            self._session = GdbSession(self.qemu.process, self.script, self.config)
            self._session.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._take(self._session.close())

    @property
    def ending(self) -> Ending:
        return self._session.ending

    @property
    def target_gone(self) -> bool:
        return self._session.target_gone

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether all that was asked for has happened."""

    @property
    def hopeless(self) -> bool:
        """Whether going on would bring no more than trouble for the guest."""
        return False

    def poll(self, timeout_s: float) -> list[T]:
        """What is new, waiting for something at most so long.

        Raises:
            RecorderFailed: gdb has died, or somebody has stopped the target.
        """
        return self._take(self._session.receive(timeout_s))

    def thread(self, tid: int, name: str, frames: Sequence[str] = ()) -> Thread:
        return Thread(tid, name, self.qemu.roles.role(tid, name, frames))

    @abstractmethod
    def _read(self, message: Message) -> T | None:
        """What a message tells, None for one that tells nothing of the experiment."""

    def _take(self, messages: list[Message]) -> list[T]:
        told = [one for message in messages if (one := self._read(message)) is not None]
        self.seen += told
        return told
