"""The gdb commands beside what they show: help, completion, errors, where they may lie."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import QEMUS, ROOT
from tests.live.support.gdb_cases import COMMANDS, CONTEXTS, SAVE, STRANDED, Hung
from tests.live.support.gdb_session import Target, gdb, session

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]


def test_a_request_that_cannot_be_met_is_one_line(hung: Hung) -> None:
    target = hung.any("core")
    expected = {
        "aio contexts now": "usage: aio contexts",
        "aio bh a b": "usage: aio bh [NAME]",
        "aio handlers nowhere": "no AioContext is called nowhere; there are main, iohandler, ",
        "aio coroutine": "usage: aio coroutine ADDRESS",
        "aio coroutine 16": "there is no memory at 0x10",
        "aio coroutine $sp": "is no coroutine that sleeps; aio jobs shows those of jobs",
        "aio coroutine no_such_symbol": 'aio coroutine: No symbol "no_such_symbol" in current',
        "aio break": "usage: aio break NAME [--run]",
        "aio break x": "a core file cannot run",
        "aio nonsense": 'Undefined aio command: "nonsense".  Try "help aio".',
    }
    said = gdb(target, *expected).splitlines()
    assert len(said) == len(expected)
    for line, message in zip(said, expected.values(), strict=True):
        assert message in line


def test_a_breakpoint_that_cannot_be_set_is_one_line(hung: Hung) -> None:
    lines = gdb(
        hung.any("live"),
        f"aio break {SAVE[:-1]}",
        "aio break thread_pool_completion_bh",
    ).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"is called {SAVE[:-1]}; did you mean {SAVE}?")
    assert lines[1].endswith("aio break thread_pool_completion_bh --run stops where it runs")


def test_without_a_stopped_qemu_every_command_says_what_it_needs(hung: Hung) -> None:
    nothing = gdb(None, *(f"aio {name}" for name in (*COMMANDS, "coroutine 1", "break x")))
    assert set(nothing.splitlines()) == {
        "no process and no core: attach PID, or start gdb QEMU CORE"
    }
    shell = gdb(None, "file /bin/sleep", "starti 60", "aio bh", "kill")
    assert "has no aio_poll(): not a QEMU program" in shell
    with session(hung.any("live")) as gdb_session:
        gdb_session.send("continue &")
        assert "the target is running: interrupt it first" in gdb_session.ask("aio bh")
        gdb_session.send("interrupt")
        gdb_session.read_until("SIGINT")


def test_a_core_of_another_build_is_refused(hung: Hung) -> None:
    """Read with the wrong file, all lists would look empty."""
    executable, file = hung.any("core").arguments
    other = str(next(Path(path) for path, _ in QEMUS[1:] if path).resolve())
    said = gdb(Target((other, file), 0, Path(executable)), "aio bh", "aio why")
    assert set(said.splitlines()) == {
        f"{other} is another build than what ran here: file PATH-OF-THE-RIGHT-QEMU, then try again"
    }
    without = gdb(Target(("-c", file), 0, Path(executable)), "aio bh")
    assert without.startswith("gdb does not know the program: file PATH-OF-THE-RIGHT-QEMU")


def without(*facts: str) -> str:
    """The command after which these are not known."""
    hidden = ", ".join(f"{fact}=None" for fact in facts)
    return (
        "python import dataclasses; from qtrace.gdbscripts import gdb_look; "
        "known = gdb_look.layout(); "
        f"gdb_look.layout = lambda: dataclasses.replace(known, {hidden})"
    )


def test_a_fact_that_the_code_does_not_show_is_named(hung: Hung) -> None:
    target = hung.any("core")
    facts = ("bh_cb", "bh_opaque", "handler_io_read", "handler_io_write", "handler_opaque")
    halves, handlers = (gdb(target, without(*facts), f"aio {name}") for name in ("bh", "handlers"))
    assert re.search(rf"{STRANDED} +iohandler +[?] +[?] +PENDING", halves)
    assert "not shown by the code of this QEMU: bh_cb, bh_opaque" in halves
    assert re.search(r"iohandler +\d+ +IN\S* +[?] +[?] +[?]", handlers)
    told = "handler_io_read, handler_io_write, handler_opaque"
    assert f"not shown by the code of this QEMU: {told}" in handlers
    assert "0x0" not in halves + handlers
    for name in ("contexts", "bh", "handlers"):
        said = gdb(target, without("main_variable"), f"aio {name}")
        assert f"aio {name}: the code of this QEMU does not show main_variable" in said
    said = gdb(target, without("ctx_aio_handlers"), "aio handlers")
    assert "does not show ctx_aio_handlers" in said
    said = gdb(target, without("context_tls"), "aio bh")
    assert "there may be more: the AioContexts of IOThreads, which the code of this QEMU" in said


@pytest.mark.parametrize("kind", ["live", "core"])
def test_libraries_that_gdb_does_not_have_are_named_and_not_guessed(
    hung: Hung, kind: str, tmp_path: Path
) -> None:
    target = hung.any(kind)
    asked = ("aio why", "aio threads", "aio jobs")
    said = gdb(target, f"set sysroot {tmp_path}", *asked)
    assert "it cannot be told whether anything is in the way" in said
    assert f"the stack of {target.pid} (main) breaks off" in said
    assert f"{target.pid} (main) waits in" not in said
    line = next(line for line in said.splitlines() if line.startswith("gdb does not have"))
    assert "/libc.so.6" in line
    folder = f"/proc/{target.pid}/root" if kind == "live" else "DIR (where its files lie)"
    assert f"set sysroot {folder}" in line
    again = [f"core-file {target.arguments[1]}"] if kind == "core" else []
    root = folder if kind == "live" else "/"
    said = gdb(target, f"set sysroot {tmp_path}", f"set sysroot {root}", *again, *asked)
    assert f"the main loop does not run: {target.pid} (main) waits in bdrv_drain_all" in said
    assert "gdb does not have" not in said


def test_names_are_completed(hung: Hung) -> None:
    printed = gdb(
        hung.any("live"), "complete aio ", "complete aio bh co", "complete aio why co",
        "complete aio handlers io", "complete aio handlers iothread:i",
        "complete aio break snapshot_s", f"complete aio break {SAVE} -",
    ).splitlines()  # fmt: skip
    assert printed == [
        *(f"aio {name}" for name in sorted((*COMMANDS, "coroutine", "break"))),
        f"aio bh {STRANDED}", f"aio why {STRANDED}",
        *(f"aio handlers {name}" for name in CONTEXTS[1:]), "aio handlers iothread:iot0",
        f"aio break {SAVE}", f"aio break {SAVE} --run",
    ]  # fmt: skip
    assert gdb(None, "complete aio bh ", "complete aio break s") == ""


def test_every_command_has_help() -> None:
    names = (*COMMANDS, "coroutine", "break")
    assert "List of aio subcommands:" in gdb(None, "aio")
    printed = gdb(None, "help aio", *(f"help aio {name}" for name in names))
    for name in names:
        assert re.search(rf"^aio {name} -- [A-Z].*\.$", printed, re.MULTILINE), printed
        assert re.search(rf"^aio {name}( \S+)*$", printed, re.MULTILINE), printed


def test_qemus_own_gdb_commands_live_beside_these(tmp_path: Path) -> None:
    """QEMU's scripts/qemu-gdb.py has a package with a module ``aio`` too, and a prefix."""
    package = tmp_path / "qemugdb"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "aio.py").write_text("WHOSE = 'theirs'\n")
    theirs = tmp_path / "qemu-gdb.py"
    theirs.write_text(
        "import os, sys, gdb\n"
        "sys.path.append(os.path.dirname(__file__))\n"
        "from qemugdb import aio\n"
        "class Qemu(gdb.Command):\n"
        "    def __init__(self): super().__init__('qemu', gdb.COMMAND_DATA, prefix=True)\n"
        "class Handlers(gdb.Command):\n"
        "    def __init__(self): super().__init__('qemu handlers', gdb.COMMAND_DATA)\n"
        "    def invoke(self, arg, tty): print(aio.WHOSE)\n"
        "Qemu()\nHandlers()\n"
    )
    printed = gdb(None, f"source {theirs}", "qemu handlers", "aio handlers", "qemu handlers")
    assert printed.splitlines() == [
        "theirs", "no process and no core: attach PID, or start gdb QEMU CORE", "theirs",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["gdbscripts/aio.py", "qtrace/gdbscripts/aio.py"])
def test_it_can_be_sourced_by_either_path_and_by_another_script(path: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(f"import gdb\ngdb.execute('source {ROOT / path}')\n")
    assert "aio bh -- " in gdb(None, "help aio", script=other)
