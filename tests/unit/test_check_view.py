"""What `qtrace check` says of a loop that comes back."""

from __future__ import annotations

import pytest

from qtrace.check.sightings import Loop
from qtrace.cli.views.check_view import loop_in_words
from qtrace.qemu.aio.model import Thread


@pytest.mark.parametrize(
    ("ran", "also"), [(0.03, ""), (0.97, "; it ran 97 % of the time")], ids=["idle", "busy"]
)
def test_a_loop_that_finds_something_to_do_again_and_again_is_told_as_busy(
    ran: float, also: str
) -> None:
    loop = Loop(Thread(7, "qemu-system-x86", "main", "ppoll"), home_ns=0)
    for now_ns, home in ((5_000_000, True), (9_000_000, False), (21_000_000, True)):
        loop.saw(now_ns, home)
    text = "seen in its poll 2 of 3 times, 16 ms at most from one to the next"
    assert loop_in_words(loop, ran) == text + also
