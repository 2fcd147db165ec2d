"""Progress bars on stderr, and stopping between two steps when asked to."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    what: str, total: int | None, done: int = 0, console: Console | None = None
) -> Iterator[Callable[[int, str], None]]:
    """A bar, if stderr is a terminal; gives a function that takes the steps done and a note to show beside them."""
    console = console or Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total, completed=done, note="")
        yield lambda completed, note="": bar.update(task, completed=completed, note=note)


class Stopped(Exception):
    """A command that a signal stopped between two steps; says how to go on."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class StopSignal:
    """Which signal asked to stop, if any; calling it says whether one did."""

    received: signal.Signals | None = None

    def __call__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """As the shell reports a command that a signal ended."""
        return 128 + self.received


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """SIGINT and SIGTERM no longer end the program but are noted; a second one does what it always did."""
    stop = StopSignal()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

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
