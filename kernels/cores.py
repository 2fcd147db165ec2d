"""How many threads there are to use, and whether other programs keep them from their cores."""

import os
import threading
import time
from contextlib import contextmanager
from functools import lru_cache

import torch

_local = threading.local()
# Seconds: if others are late twice within the first, the caller works alone for the second, and longer each time that
# they are late again soon, up to the third
WINDOW, ALONE, LONGEST = 0.2, 1.0, 30.0


class Solitude:
    """Whether callers had better work alone, since other threads have got no time of late.

    Attributes:
        until: time up to which they had, of ``time.monotonic``.
    """

    def __init__(self):
        self.until, self._late_at, self._length = 0.0, -WINDOW, ALONE

    @property
    def is_wanted(self) -> bool:
        """Whether to work alone now."""
        return time.monotonic() < self.until

    def others_were_late(self) -> None:
        """Take notice of a job that had to wait for a thread without a core."""
        now = time.monotonic()
        if now - self._late_at < WINDOW:
            again = now - self.until < 4.0 * self._length
            self._length = min(2.0 * self._length, LONGEST) if again else ALONE
            self.until = now + self._length
        self._late_at = now


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
