"""Whole stacks that found no room are missed, in words."""

from __future__ import annotations

import pytest

from qtrace.record.all_events.stack_samples import without_room


@pytest.mark.parametrize(("there", "due"), [(0, 0), (100, 100), (95, 100), (3, 3)])
def test_where_all_are_there_nothing_is_told(there: int, due: int) -> None:
    assert without_room(there, due) == ""


def test_where_some_are_missing_it_is_told_how_many_and_what_helps() -> None:
    said = without_room(9_856, 32_859)
    assert said.startswith("9,856 of 32,859 whole stacks found room")
    assert "--stacks-every" in said
