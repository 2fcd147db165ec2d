"""What a forked process needs: of all threads it has only the one that called fork, and all memory as it was then.

PyTorch's team of threads is gone, and a loop that waits for it never ends: a forked process computes on one thread.
Locks that others held would stay closed for ever. Compilers must not be left in the middle of their work.
"""

import os
import threading
from weakref import WeakSet

import torch

_locks: WeakSet = WeakSet()


class Lock:
    """A lock, open in a forked process, whoever held it.

    Args:
        reentrant: whether the thread that holds it may take it once more.
    """

    def __init__(self, reentrant: bool = False):
        self._make = threading.RLock if reentrant else threading.Lock
        self._lock = self._make()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_) -> None:
        self._lock.release()


def _begin() -> None:
    """In the child."""
    torch.set_num_threads(1)
    for lock in list(_locks):
        lock._lock = lock._make()


def wait_before_forks(lock) -> None:
    """Have forks wait for a lock, and leave it open on both sides."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_begin)
