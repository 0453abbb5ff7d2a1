"""Ctrl-C and SIGTERM: exceptions everywhere, but they wait for the end of a write."""

import signal

import pytest

from machine.signals import Terminated, finishing, terminable


@pytest.mark.parametrize(
    ("signum", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_stop_waits_for_the_end_of_the_write(signum, exception):
    steps = []
    with terminable():
        with pytest.raises(exception):
            with finishing():
                signal.raise_signal(signum)
                steps.append("written")
            steps.append("never")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps == ["written"]


def test_a_second_stop_does_not_wait():
    steps = []
    with pytest.raises(KeyboardInterrupt), finishing():
        signal.raise_signal(signal.SIGINT)
        steps.append("first")
        signal.raise_signal(signal.SIGINT)
        steps.append("never")
    assert steps == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_write_is_not_hidden_by_a_stop():
    with pytest.raises(OSError, match="full"), finishing():
        signal.raise_signal(signal.SIGINT)
        raise OSError("full")


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
        with finishing():
            pass
    assert signal.getsignal(signal.SIGTERM) is before
