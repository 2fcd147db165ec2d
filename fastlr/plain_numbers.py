"""Numbers as callers give them: Python's, numpy's, a tensor's."""

from math import isfinite
from numbers import Real
from typing import Any

import numpy as np


def plain_number(value: Any) -> float | int | None:
    """A finite number as Python's own, also of an array or a tensor without axes; None if it is none."""
    if hasattr(value, "item") and np.shape(value) == ():
        value = value.item()
    try:
        is_number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    except (OverflowError, TypeError):  # an integer beyond all floats; a time span
        is_number = False
    return value if is_number else None
