"""The first signal is noted; the next breaks off, but not while something is put back."""

from __future__ import annotations

import os
import signal

import pytest

from qtrace.cli.signals import NUMBERS, BrokenOff, Signals


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_the_first_is_noted_and_the_second_breaks_off() -> None:
    with Signals() as signals:
        assert signals.reason == ""
        send(signal.SIGHUP)
        assert signals.reason == "SIGHUP"
        with pytest.raises(BrokenOff) as raised:
            send(signal.SIGTERM)
        assert raised.value.number == signal.SIGTERM
        assert signals.reason == "SIGHUP"


def test_one_that_was_heeded_counts_no_more() -> None:
    with Signals() as signals:
        send()
        signals.forget()
        assert signals.reason == ""
        send(signal.SIGINT)
        assert signals.reason == "SIGINT"


def test_where_nobody_looks_for_it_the_first_breaks_off() -> None:
    with Signals() as signals:
        signals.no_loop()
        with pytest.raises(BrokenOff):
            send()


def test_what_is_put_back_is_put_back_first() -> None:
    done = []
    with Signals() as signals:
        signals.no_loop()

        def put_back() -> None:
            with signals.held_off():
                send()
                done.append("put back")

        with pytest.raises(BrokenOff) as raised:
            put_back()
        assert done == ["put back"]
        assert raised.value.number == signal.SIGTERM
        with pytest.raises(BrokenOff):
            send()


def test_the_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with Signals():
        pass
    assert [signal.getsignal(number) for number in NUMBERS] == before
