"""The frame of every ``aio`` command: preconditions, errors, completion."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import gdb

from qtrace.gdbscripts.gdb_target import file_code, is_core, require_target, selection_kept
from qtrace.gdbscripts.tables import tell
from qtrace.gdbscripts.target_files import begin, files
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.walk import Missing


class AioCommand(gdb.Command):
    """A command under the prefix ``aio``; a subclass's docstring is its help.

    Whatever goes wrong becomes one line. The thread and frame that the user selected are
    selected again afterwards.
    """

    name = ""
    # As in "usage: aio bh [NAME]".
    arguments = ""

    def __init__(self) -> None:
        super().__init__("aio " + self.name, gdb.COMMAND_DATA)

    def run(self, arguments: list[str]) -> None:
        raise NotImplementedError

    def candidates(self, words: list[str]) -> Iterable[str]:
        """What may stand after these words."""
        return ()

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        require_target()
        begin()
        try:
            with selection_kept(), file_code() if is_core() else nullcontext():
                self.run(gdb.string_to_argv(argument))
            if files().met:
                tell(files().complaint())
        except gdb.error as error:
            raise gdb.GdbError(f"aio {self.name}: {error}") from None
        except Missing as error:
            raise gdb.GdbError(
                f"aio {self.name}: the code of this QEMU does not show {error.fact}"
            ) from None
        except Torn as error:
            told = (
                f"this core does not have {error.what}: it is damaged, or its end was not written"
                if is_core()
                else f"stopped amid a change of {error.what}: continue for a moment and ask again"
            )
            raise gdb.GdbError(f"aio {self.name}: {told}") from None

    def complete(self, text: str, word: str) -> list[str]:
        words = text.split()
        # gdb breaks words at '-' and ':' too: ``word`` is the end of what is being typed.
        typed = words.pop() if words and not text[-1:].isspace() else ""
        try:
            require_target()
            with selection_kept():
                found = {one for one in self.candidates(words) if one.startswith(typed)}
        except (gdb.error, gdb.GdbError, Missing, Torn):
            return []
        return sorted(one[len(typed) - len(word) :] for one in found)

    def usage(self) -> gdb.GdbError:
        return gdb.GdbError(f"usage: aio {self.name} {self.arguments}".rstrip())

    def at_most_one(self, arguments: list[str]) -> str:
        """The only argument, empty without one."""
        if len(arguments) > 1:
            raise self.usage()
        return arguments[0] if arguments else ""
