"""The streams and signals of a command: whatever they are, a message is a line and never a traceback."""

import codecs
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PLAINLY = {
    "Å": "A",
    "µ": "u",
    "μ": "u",
    "→": "->",
    "…": "...",
    "—": "-",
    "−": "-",
    "±": "+-",
    "×": "x",
    "²": "2",
    "³": "3",
}
NARROW = 20  # columns; not the width of a terminal
EXIT_ENDED = 128  # and the number of the signal, as the shell reports a command that a signal ended


def plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """What a stream cannot encode: bytes of a file's name as they are, Å as A, others as escapes; for codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # how Python writes a byte of a name that is no text
        return bytes([ord(character) - 0xDC00]), end
    return PLAINLY.get(character) or ascii(character)[1:-1], end


codecs.register_error("fastlr.plainly", plainly)


@contextmanager
def usable_streams() -> Iterator[None]:
    """Let stdout and stderr write what they can encode of every text, warnings be one line each on stderr, and signals
    that end the command clean up first."""
    _fill_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(ValueError):  # of a stream that was detached or closed
                stream.reconfigure(errors="fastlr.plainly")
    if (width := os.environ.get("COLUMNS", "")).isdecimal() and int(width) < NARROW:
        del os.environ["COLUMNS"]  # nothing would be printed
    with warnings.catch_warnings(), _cleaning_up():
        warnings.showwarning = _show
        yield


def _fill_closed() -> None:
    """Lead closed streams (>&-) nowhere; else the next files to be opened would take their numbers."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    say(f"warning: {message}")


def say(message: str) -> None:
    """One line on stderr, if anybody still listens there."""
    with suppress(OSError):
        print(" ".join(message.split()), file=sys.stderr)


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Have fatal signals run the ``finally`` clauses of the program, unless they are handled or ignored already."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame) -> None:
    raise SystemExit(EXIT_ENDED + number)


def can_print() -> bool:
    """Whether stdout takes an empty line."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def flushed(code: int) -> int:
    """The exit code once everything printed has arrived; or that of a failure to print.

    Nothing is left for Python to flush when it ends, which would complain in its own way.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        missing = not_printed(error)
        return code or missing
    return code


def not_printed(error: OSError) -> int:
    """The exit code where stdout cannot be written to. A reader with enough (``| head``) is no error."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.__stdout__.fileno())
        os.close(null)
    if error.errno == errno.EPIPE:
        return EXIT_ENDED + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 0
    say(f"error: standard output: {error.strerror or error}")
    return 2
