"""A look in words and as JSON: what is not known is neither a name nor an empty list."""

from __future__ import annotations

import io
import json

from rich.console import Console

from qtrace.cli.views.look_view import look_json, loop_finding_json, print_look
from qtrace.qemu.aio.findings import explain
from qtrace.qemu.aio.model import BottomHalf, Context, Handler, Job, Look, Thread

MAIN, IOHANDLER = Context(0x10, "main", 7), Context(0x20, "iohandler", 7)
STUCK = Thread(
    7, "qemu", "main", "futex", ("pthread_cond_wait", "wait_for_godot", "main"), True, (), (1, 2)
)


def partly_known() -> Look:
    """Of a build that shows where lists are, but not what their members hold."""
    return Look(
        1,
        (MAIN, IOHANDLER),
        bottom_halves=(BottomHalf(0x5000, MAIN.address, "", None, None, 3),),
        handlers=(Handler(0x6000, MAIN.address, 5, 1, None, 0, None, None),),
        jobs=(Job(0x7000, "j", "", "", None),),
        threads=(STUCK,),
        missing=("bh_cb", "handler_io_read"),
    )


def name(address: int) -> str:
    return f"f{address:x}"


def text(look: Look) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_look(console, look, name, str, {})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_is_not_known_is_null() -> None:
    document = json.loads(json.dumps(look_json(partly_known(), name, {})))
    (half,) = document["contexts"][0]["bottom_halves"]
    assert (half["callback"], half["callback_name"], half["opaque"]) == (None, None, None)
    (handler,) = document["contexts"][0]["handlers"]
    assert [handler[key] for key in ("io_read", "io_write", "opaque", "deleted")] == [None] * 4
    (job,) = document["jobs"]
    assert (job["type"], job["status"], job["co"]) == (None, None, None)
    assert document["missing"] == ["bh_cb", "handler_io_read"]
    assert document["bql"] == {"known": False, "holder": None}
    assert "0x0" not in json.dumps(document)


def test_a_list_that_cannot_be_read_is_null_not_empty() -> None:
    both = (MAIN.address, IOHANDLER.address)
    look = Look(1, (MAIN, IOHANDLER), unread=both, unread_handlers=both, unread_coroutines=both)
    document = look_json(Look(**{**look.__dict__, "jobs": None}), name, {})
    for context in document["contexts"]:
        assert context["bottom_halves"] is None
        assert context["handlers"] is None
        assert context["scheduled_coroutines"] is None
    assert document["jobs"] is None
    known = look_json(Look(1, (MAIN,)), name, {})
    assert known["contexts"][0]["handlers"] == known["jobs"] == []


def test_in_words_it_is_a_question_mark_and_named() -> None:
    words = text(partly_known())
    assert "? calls ? PENDING|SCHEDULED" in words
    assert "fd 5: ?" in words
    assert "coroutine ?" in words
    assert "not found in this binary's code: bh_cb, handler_io_read" in words
    assert "0x0" not in words
    words = text(Look(1, (MAIN,), unread_handlers=(0x10,), unread=(0x10,), jobs=None))
    assert "? (not readable) fd handlers" in words
    assert "its bottom halves cannot be read" in words
    assert "jobs: ? (they cannot be read)" in words


def test_a_bottom_half_without_name_and_callback_is_called_by_its_address() -> None:
    (finding,) = explain(partly_known())
    assert "bh@0x5000 in `main`" in finding.sentence
    assert loop_finding_json(finding)["bottom_halves"] == ["bh@0x5000"]
