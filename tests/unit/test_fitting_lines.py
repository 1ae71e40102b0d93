"""Of an answer with more lines than anybody reads at once those go that say least."""

from __future__ import annotations

from qtrace.cli.views.check_view import Line, fitting


def told(needs: str, most: int) -> str:
    lines = [Line(int(need), str(at)) for at, need in enumerate(needs)]
    return "".join(line.text for line in fitting(lines, most))


def test_what_fits_is_told_as_it_is() -> None:
    assert told("01240", 5) == "01234"


def test_what_is_needed_least_goes_first_and_of_that_the_last() -> None:
    assert told("0122440", 5) == "01236"
    assert told("0144440", 5) == "01236"


def test_what_is_wrong_and_what_was_not_seen_is_never_left_out() -> None:
    assert told("0010020", 3) == "01346"
