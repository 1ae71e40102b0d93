"""Lines for the standard error, which may be a pipe that nobody reads: whoever says them never
waits."""

from __future__ import annotations

import os
import queue
import threading

# So many wait for a reader.
MOST_LINES = 1000
# What was said before the end is waited for so long.
END_S = 1.0


class Log:
    """A thread writes them.

    Args:
        fd: where to.
        most: so many wait; of more the number is told, when they can be written again.

    Attributes:
        dropped: how many were not written.
    """

    def __init__(self, fd: int = 2, most: int = MOST_LINES) -> None:
        self._fd = fd
        self._lines: queue.Queue[str] = queue.Queue(most)
        self._untold = self.dropped = 0
        # Without Python's own buffer, whose lock would be held at the end.
        threading.Thread(target=self._write, daemon=True, name="log").start()

    def say(self, text: str) -> None:
        """One line, or several that belong together."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1
            self._untold += 1

    def close(self) -> None:
        """Wait a moment until all is written."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, END_S)

    def _write(self) -> None:
        while True:
            text = self._lines.get()
            if self._untold:
                untold, self._untold = self._untold, 0
                text = f"warning: {untold} lines were left out: nobody read them\n{text}"
            self._put(f"{text}\n".encode(errors="backslashreplace"))
            self._lines.task_done()

    def _put(self, data: bytes) -> None:
        """Who has closed it wants to hear nothing."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                return
