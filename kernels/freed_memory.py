"""What the C library does with large blocks of memory that are freed."""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST = 2**31 - 1
GIVEN_BACK = 2**24  # bytes of a tensor from which on those like it, and twice as large, are given back by default


@cache
def keep() -> bool:
    """Have this process keep the memory of freed tensors for the next ones, and say whether the C library does so.

    By default glibc gives blocks of more than 32 MiB back to the system, which hands out pages anew and clears them:
    a third of the time of transforms that come again and again. Call it where large tensors of the same sizes are
    made and freed in each step.
    """
    try:
        library = ctypes.CDLL(None)
        return all(library.mallopt(name, _LARGEST) for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
    except (OSError, TypeError, AttributeError):  # another C library
        return False
