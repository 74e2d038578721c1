"""Signals that ask the process to stop, sent to the process of the tests."""

import os
import signal
import time

import pytest

from perdure.stopping import Terminated, handled, held, in_time, is_requested, stop


pytestmark = pytest.mark.own


@pytest.fixture(autouse=True)
def usual_handlers():
    """The handlers of a program in the foreground; one in the background may ignore signals."""
    usual = {signal.SIGINT: signal.default_int_handler}
    usual |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    handlers = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


class Sent:
    """Signals that are sent in a block which may hold them, and what the block did after that."""

    def __init__(self, *numbers: int, seconds: float = 60.0):
        self.numbers, self.seconds, self.ended = numbers, seconds, False

    def __call__(self, rest=lambda: None) -> None:
        with handled(), held(self.seconds):
            send(*self.numbers)
            rest()
            self.ended = True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_raises_at_once_and_the_status_is_that_of_a_shell(number):
    with pytest.raises(Terminated) as stopped, handled():
        send(number)
    assert stopped.value.code == 128 + number


def test_the_keyboard_raises_as_in_any_program():
    with pytest.raises(KeyboardInterrupt), handled():
        send(signal.SIGINT)


def test_a_block_ends_first_and_a_second_signal_is_no_news():
    block = Sent(signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Terminated):
        block()
    assert block.ended
    assert not is_requested()


def test_a_block_can_stop_by_itself_and_say_what_is_done():
    block = Sent(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        block(lambda: stop("after step 3"))


def test_a_second_ctrl_c_does_not_wait():
    block = Sent(signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        block()
    assert not block.ended


def test_a_block_that_takes_too_long_is_stopped_unless_it_is_nearly_done():
    block = Sent(signal.SIGTERM, seconds=0.01)
    with pytest.raises(Terminated):
        block(lambda: time.sleep(60))
    assert not block.ended

    def rest():
        in_time()
        time.sleep(0.05)

    block = Sent(signal.SIGTERM, seconds=60)
    with pytest.raises(Terminated):
        block(rest)
    assert block.ended


def test_an_error_of_the_block_comes_first():
    def broken():
        raise ValueError("wrong")

    block = Sent(signal.SIGTERM)
    with pytest.raises(ValueError, match="wrong"):
        block(broken)


def test_a_signal_that_is_ignored_stays_ignored_and_handlers_are_restored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_in_a_program_of_its_own_nothing_is_held():
    with pytest.raises(KeyboardInterrupt), held(60):
        send(signal.SIGINT)
