"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP do, which ask the process to stop.

They raise at once, or when a `held` block has ended. Only the command line handles them
(`handled`); a Python caller has the handlers of its own program.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has asked the process to stop; the exit status is 128 + the signal.

    Args:
        number: the signal.
        reached: what was reached before, in words for the user.
    """

    def __init__(self, number: int, reached: str = ""):
        self.status, self.reached = 128 + number, reached
        super().__init__(self.status)

    def __str__(self) -> str:
        return self.reached


class _Handler:
    """Handles the signals of the process; `received` is the first that came."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_installed = self.is_held = False
        self.seconds = 0.0  # that a signal waits

    def __call__(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        self.received = self.received or number
        if is_first and self.is_held:
            signal.setitimer(signal.ITIMER_REAL, self.seconds)
        elif is_first or number == signal.SIGINT:  # a second Ctrl-C does not wait for anything
            stop()


_handler = _Handler()


def is_requested() -> bool:
    """Return whether a signal was received, which waits for the end of a `held` block."""
    return _handler.received is not None


def stop(reached: str = "") -> None:
    """Stop as the received signal asks for; `reached` says in words what is done already.

    Raises:
        KeyboardInterrupt: the signal is SIGINT.
        Terminated: it is another one.
    """
    number = _handler.received or signal.SIGTERM  # none if another process has received it
    _handler.is_held = False
    if number == signal.SIGINT:
        raise KeyboardInterrupt(reached)
    raise Terminated(number, reached)


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals in a block. One that the process ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler in usual:
            signal.signal(number, _handler)
    on_alarm = signal.signal(signal.SIGALRM, lambda number, frame: stop())
    _handler.received, _handler.is_installed = None, True
    try:
        yield
    finally:
        for number, handler in {**before, signal.SIGALRM: on_alarm}.items():
            signal.signal(number, handler)
        _handler.received, _handler.is_installed = None, False


@contextmanager
def held(seconds: float) -> Iterator[None]:
    """Let a signal wait for the end of a block, or for at most some seconds."""
    if not _handler.is_installed or _handler.is_held:
        yield
        return
    _handler.is_held, _handler.seconds = True, seconds
    try:
        yield
    finally:
        _handler.is_held = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    if is_requested():
        stop()


def in_time() -> None:
    """Let a signal wait for the end of the `held` block, however long it takes from now on."""
    if _handler.is_installed:
        signal.setitimer(signal.ITIMER_REAL, 0)
