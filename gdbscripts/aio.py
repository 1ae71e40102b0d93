"""Commands about QEMU's AioContexts inside gdb: ``source`` this file, then ``help aio``.

Works from a clone of qtrace and from an installed one (``qtrace gdb-script`` prints the path).
gdb's own Python runs it, so that nothing but the standard library is used.
"""

import importlib.util
import os
import sys

import gdb

OLDEST_PYTHON = (3, 9)


class Aio(gdb.Command):
    """Look at QEMU's AioContexts, bottom halves, jobs and coroutines.

    Works on a stopped process and on a core file, with and without debug info. None of these
    commands calls a function of QEMU or writes to its memory or registers (aio break sets
    ordinary breakpoints)."""

    def __init__(self) -> None:
        super().__init__("aio", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        if argument:
            name = argument.split()[0]
            raise gdb.GdbError(f'Undefined aio command: "{name}".  Try "help aio".')
        gdb.execute("help aio")


def _import_package() -> None:
    """Make ``qtrace``, which this file belongs to, importable without touching sys.path.

    This file lies in gdbscripts/ beside qtrace/ (a clone) or in qtrace/gdbscripts/ (installed).
    """
    # Not __file__: in a script that another Python script sources, that is the other's.
    here = os.path.dirname(os.path.realpath(_import_package.__code__.co_filename))
    parent = os.path.dirname(here)
    for folder in (os.path.join(parent, "qtrace"), parent):
        init = os.path.join(folder, "__init__.py")
        if os.path.isfile(init) and os.path.isdir(os.path.join(folder, "qemu", "aio")):
            spec = importlib.util.spec_from_file_location(
                "qtrace", init, submodule_search_locations=[folder]
            )
            if spec is not None and spec.loader is not None:
                package = importlib.util.module_from_spec(spec)
                sys.modules["qtrace"] = package
                spec.loader.exec_module(package)
                return
    raise gdb.GdbError("aio.py must stay in its folder in qtrace; qtrace gdb-script prints it")


def _register() -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise gdb.GdbError(
            "aio.py needs a gdb with Python {}.{} or newer, this one has {}.{}".format(
                *OLDEST_PYTHON, *sys.version_info[:2]
            )
        )
    _import_package()
    from qtrace.gdbscripts import block_commands, breakpoints, list_commands, why_commands

    Aio()
    for command in (
        list_commands.Contexts, list_commands.BottomHalves, list_commands.Handlers,
        list_commands.Threads, list_commands.Jobs,
        block_commands.Nodes, block_commands.Requests, block_commands.Coroutines,
        why_commands.Coroutine, why_commands.Why, breakpoints.Break,
    ):  # fmt: skip
        command()


_register()
