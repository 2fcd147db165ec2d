"""Numbers that callers give: Python's, numpy's or a tensor's, and nothing else."""

from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastlr.errors import InputError


def number(key: str, value: Any, *, least: float = -inf, above: float = -inf, unit: str = "") -> float:
    """A finite number as Python's own.

    Args:
        key: what errors call it.
        value: of any type that is a number, or an array of one.
        least, above: it must be at least, or above, so much.
        unit: in words, for errors.

    Raises:
        InputError: it is none (text, truth values, NaN, ...), or too small.
    """
    plain = value.item() if hasattr(value, "item") and np.shape(value) == () else value
    is_number = isinstance(plain, Real) and not isinstance(plain, bool)
    try:
        good = is_number and isfinite(plain) and plain >= least and plain > above
    except (OverflowError, TypeError):  # an integer beyond all floats; a time span
        good = False
    if not good:
        bound = f" above {above:g}" if above > -inf else f" of at least {least:g}" if least > -inf else ""
        raise InputError(f"{key} must be a finite number{bound}{unit and f' ({unit})'}, got {value!r:.80}")
    return float(plain)


def whole(key: str, value: Any, *, least: int) -> int:
    """A whole number of at least ``least``, as Python's own; see ``number``."""
    plain = value.item() if hasattr(value, "item") and np.shape(value) == () else value
    is_whole = isinstance(plain, Integral) or (isinstance(plain, Real) and isfinite(plain) and plain == int(plain))
    if isinstance(plain, bool) or not is_whole:
        raise InputError(f"{key} must be a whole number of at least {least}, got {value!r:.80}")
    if plain < least:
        raise InputError(f"{key} must be at least {least}, got {value}")
    return int(plain)
