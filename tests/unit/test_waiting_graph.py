"""Who waits for whom: what looks show becomes an edge, and edges lead to the right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qtrace.export.waiting_picture import layers
from qtrace.inspection.answer import Answer
from qtrace.inspection.since import Since
from qtrace.inspection.waiting_graph import Edge, WaitingGraph, waiting_graph
from qtrace.qemu.aio.findings import explain
from qtrace.qemu.aio.model import Look
from tests.unit.test_aio_why import (
    LOOP,
    MAIN,
    MAIN_TID,
    PAUSING,
    SAVE,
    STRANDED,
    TAKING_BQL,
    VCPU_TID,
    Poll,
    look,
    main_thread,
    vcpu,
)


def graph(seen: Look) -> WaitingGraph:
    return waiting_graph(seen, Answer(tuple(explain(seen))))


def test_a_lock_a_pause_and_what_is_pending_lead_to_the_thread_that_is_waited_for() -> None:
    main, cpu = f"thread {MAIN_TID}", f"thread {VCPU_TID}"
    pending = Edge("pending in iohandler", main, "to run them")
    taking = graph(look(main_thread(TAKING_BQL), vcpu(), bql_holder=VCPU_TID))
    assert set(taking.edges) == {Edge(main, cpu, "the BQL"), pending}
    pausing = graph(look(main_thread(PAUSING), vcpu(), bql_holder=VCPU_TID))
    assert {(edge.who, edge.whom) for edge in pausing.edges} == {
        (main, cpu), (pending.who, pending.whom),
    }  # fmt: skip
    assert {party.key: party.found for party in pausing.parties} == {
        main: True, cpu: False, "pending in iohandler": False,
    }  # fmt: skip


def test_of_a_stranded_one_the_finding_s_own_are_marked() -> None:
    found = graph(STRANDED)
    (edge,) = found.edges
    (halves,) = [party for party in found.parties if party.key == edge.who]
    assert (halves.label, halves.found) == (SAVE.name, True)


def test_where_nobody_waits_for_another_one_there_is_nobody() -> None:
    idle = graph(look(main_thread(LOOP, Poll(MAIN.address, 1)), vcpu(blocked_in="", frames=())))
    assert idle == WaitingGraph((), ())


pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20)


@given(pairs)
def test_whoever_is_waited_for_stands_further_right_but_in_a_circle(
    found: list[tuple[int, int]],
) -> None:
    keys = [str(number) for number in range(8)]
    edges = [(str(who), str(whom)) for who, whom in found if who != whom]
    places = layers(keys, edges)
    assert places.keys() == set(keys)
    after = {key: {whom for who, whom in edges if who == key} for key in keys}

    def reached(key: str) -> set[str]:
        seen: set[str] = set()
        todo = [key]
        while todo:
            new = after[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    for who, whom in edges:
        if who not in reached(whom):
            assert places[who] < places[whom]


def test_since_when_it_is_so_ends_with_another_state_or_a_look_without_it() -> None:
    since = Since()
    assert since.saw({"a": 1, "b": 1}, 100) == {"a": 0, "b": 0}
    assert since.saw({"a": 1, "b": 2}, 150) == {"a": 50, "b": 0}
    assert since.saw({"b": 2}, 200) == {"b": 50}
    assert since.saw({"a": 1, "b": 2}, 300) == {"a": 0, "b": 150}
