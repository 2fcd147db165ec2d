"""How many threads there are to use, and whether other programs keep them from their cores."""

import os
import threading
import time
from contextlib import contextmanager
from functools import lru_cache

import torch

from . import forks  # noqa: F401 (which counts threads after a fork)

_local = threading.local()
# Seconds: what is known of shared jobs counts half after the first. Who loses by them works alone for the second, and
# four times as long each time that this comes again soon, up to the third. The last is what may be lost at any time.
WINDOW, ALONE, LONGEST, NOTHING = 0.1, 0.25, 10.0, 3e-4


class Solitude:
    """Whether callers had better work alone, since others have got no time of late.

    Attributes:
        until: time up to which they had, of ``time.monotonic``.
    """

    def __init__(self):
        self.until, self._length = 0.0, ALONE
        self._lost = self._gained = self._known_at = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether to work alone now."""
        return time.monotonic() < self.until

    def shared(self, seconds: float, late: float, threads: int) -> None:
        """Take notice of a job of so many threads.

        Args:
            seconds: how long it took.
            late: how much of that it waited for a thread without a core.
        """
        now = time.monotonic()
        if now > self._known_at + WINDOW:
            share = 0.5 ** min((now - self._known_at) / WINDOW, 100.0)
            self._lost, self._gained, self._known_at = share * self._lost, share * self._gained, now
        self._lost += late
        self._gained += (threads - 1) * (seconds - late)  # one thread alone takes so much longer
        if self._lost > self._gained + NOTHING:
            again = now - self.until < 4.0 * self._length
            self._length = min(4.0 * self._length, LONGEST) if again else ALONE
            self.until = now + self._length
            self._lost = self._gained = 0.0


solitude = Solitude()


def count() -> int:
    """How many threads kernels use at most: PyTorch's number, but no more than there are cores for this process."""
    return min(getattr(_local, "count", None) or torch.get_num_threads(), _cores())


@lru_cache(None)
def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@contextmanager
def torch_on_one_thread():
    """Have PyTorch's own loops, which are short beside kernels, share nothing; ``count`` stays what it was."""
    before, known = torch.get_num_threads(), getattr(_local, "count", None)
    _local.count = known or before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _local.count = known


@contextmanager
def torch_on_all_threads():
    """Inside ``torch_on_one_thread``, have PyTorch share a long loop, as kernels do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if solitude.is_wanted else getattr(_local, "count", None) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
