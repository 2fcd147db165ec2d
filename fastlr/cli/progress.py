"""Progress bars on stderr, and stopping between two steps when asked to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastlr.signals import StopSignal, stop_on_signals

__all__ = ["StopSignal", "Stopped", "progress_bar", "stop_on_signals"]


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
