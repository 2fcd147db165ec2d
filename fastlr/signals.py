"""Stopping between two steps when a signal asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Which signal asked to stop, if any; calling it says whether one did."""

    received: signal.Signals | None = None

    def __call__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """The shell's exit code of a command ended by a signal."""
        return 128 + self.received


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """SIGINT and SIGTERM no longer end the program but are noted; a second one does what it always did.

    Outside of the main thread, where Python handles no signals, none is noted.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # what is ignored stays so, as in the background of a shell; what Python did not set (None) it cannot put back
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame):
        stop.received = signal.Signals(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
