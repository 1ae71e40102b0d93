"""Playing a recording back: what time and keys do to the place in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qtrace.cli.keys import KEY, SENT
from qtrace.cli.player import FASTEST, SLOWEST, Player

S = 1_000_000_000


@pytest.fixture
def player() -> Player:
    return Player(10 * S, 70 * S, findings=[30 * S, 20 * S, 65 * S])


def pressed(player: Player, *keys: str) -> Player:
    for key in keys:
        player.key(key)
    return player


def test_it_moves_on_with_the_time_and_stops_at_its_end(player: Player) -> None:
    player.passed(2.5)
    assert (player.now_ns, player.paused) == (12 * S + S // 2, False)
    player.passed(1000)
    assert (player.now_ns, player.paused) == (70 * S, True)
    player.passed(1)
    assert player.now_ns == 70 * S
    pressed(player, " ")
    assert (player.now_ns, player.paused) == (10 * S, False)


def test_space_stops_it_and_lets_it_go_on(player: Player) -> None:
    pressed(player, " ").passed(5)
    assert player.now_ns == 10 * S
    pressed(player, " ").passed(5)
    assert player.now_ns == 15 * S


def test_findings_come_the_worst_first_and_round(player: Player) -> None:
    def places() -> Iterator[int]:
        for key in ("n", "n", "n", "n", "p", "p"):
            yield pressed(player, key).now_ns // S

    assert list(places()) == [30, 20, 65, 30, 65, 20]
    assert player.paused
    assert pressed(Player(0, 9), "n", "p").now_ns == 0


def test_the_previous_one_of_none_is_the_last(player: Player) -> None:
    assert pressed(player, "p").now_ns == 65 * S


def test_speed_doubles_and_halves_within_its_limits(player: Player) -> None:
    assert pressed(player, "+", "+", "-").speed == 2.0
    player.passed(3)
    assert player.now_ns == 16 * S
    assert pressed(player, "right").now_ns == 18 * S
    assert pressed(player, "left", "left").now_ns == 14 * S
    assert pressed(player, *("+" * 40)).speed == FASTEST
    assert pressed(player, *("-" * 80)).speed == SLOWEST
    assert pressed(player, "left").now_ns >= 10 * S


def test_home_and_end_are_its_ends_and_unknown_keys_do_nothing(player: Player) -> None:
    assert pressed(player, "end").now_ns == 70 * S
    before = pressed(player, "home").now_ns
    assert pressed(player, "x", "\x1b", "up").now_ns == before == 10 * S
    assert pressed(player, "q").over


def test_what_terminals_send_is_taken_apart_into_keys() -> None:
    sent = " \x1b[C\x1bOD\x1b[1~+q\x1b[A"
    keys = [SENT.get(key, key) for key in KEY.findall(sent)]
    assert keys == [" ", "right", "left", "home", "+", "q", "\x1b[A"]
