"""A question that a process of its own answers, which is gone then with all that it took."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from qtrace.errors import QtraceError, TargetError
from qtrace.host.unanswered import NoAnswer, watch_over_this_thread
from qtrace.host.with_parent import end_with_parent

T = TypeVar("T")


class Forked(Generic[T]):
    """``question`` is asked from now on, until the context ends.

    A forked process has but the thread that forked: what another one was importing, or held a lock
    of, it waits for in vain. So no other may be at work then.

    Args:
        what: it is asked for, in words.
        question: what it returns or raises is pickled.
    """

    def __init__(self, what: str, question: Callable[[], T]) -> None:
        self._what = what
        reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reading)
            _Child(writing).answer(question)
        os.close(writing)
        self._pipe = os.fdopen(reading, "rb")
        self._is_over = False

    def result(self) -> T:
        """What the question returns or raises; to be called once.

        Raises NoAnswer, too, when the kernel does not answer that process.
        """
        try:
            answer, error = pickle.load(self._pipe)
        except (EOFError, pickle.UnpicklingError) as cut_off:
            raise TargetError(
                f"the process that was to {self._what} has been killed",
                "try again; where memory is short, dmesg tells",
            ) from cut_off
        self._is_over = not isinstance(error, NoAnswer)
        if error is not None:
            raise error
        found: T = answer
        return found

    def close(self) -> None:
        """It need not go on."""
        self._pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        # Without an answer it is not waited for: the kernel may not let it end, as it may not
        # answer it.
        os.waitpid(self._pid, 0 if self._is_over else os.WNOHANG)

    def __enter__(self) -> Forked[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def live_with_parent() -> None:
    """For a process that was forked a moment ago: it ends with its parent, to whom the signals are
    left that ask for an end."""
    end_with_parent()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Child:
    """The other side."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()

    def answer(self, question: Callable[[], Any]) -> NoReturn:
        try:
            live_with_parent()
            # Both have it in common: who looks for garbage in it writes to each of its pages.
            gc.freeze()
            watch_over_this_thread(self._give_up)
            try:
                answer = pickle.dumps((question(), None))
            except Exception as error:
                answer = _dumped(error)
            self._send(answer)
        finally:
            os._exit(0)

    def _give_up(self, error: QtraceError) -> None:
        self._send(_dumped(error))
        os._exit(0)

    def _send(self, answer: bytes) -> None:
        """Only once: who comes second waits until this process has ended."""
        self._sending.acquire()
        with suppress(BrokenPipeError), open(self._pipe, "wb", closefd=False) as pipe:
            pipe.write(answer)


def _dumped(error: Exception) -> bytes:
    """With where it comes from, which is not pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.dumps((None, error))
    except Exception:
        return pickle.dumps((None, RuntimeError(traceback.format_exc())))
