"""What callers give: numbers, a model, functions; and nothing else."""

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from fastlr.errors import InputError
from fastlr.plain_numbers import plain_number
from fastlr.potential import Potential, load


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
    plain = plain_number(value)
    good = plain is not None and plain >= least and plain > above
    if not good:
        bound = f" above {above:g}" if above > -inf else f" of at least {least:g}" if least > -inf else ""
        raise InputError(f"{key} must be a finite number{bound}{unit and f' ({unit})'}, got {value!r:.80}")
    return float(plain)


def whole(key: str, value: Any, *, least: int) -> int:
    """A whole number of at least ``least``, as Python's own; see ``number``."""
    plain = plain_number(value)
    if plain is None or plain != int(plain):
        raise InputError(f"{key} must be a whole number of at least {least}, got {value!r:.80}")
    if plain < least:
        raise InputError(f"{key} must be at least {least}, got {value}")
    return int(plain)


def loaded(potential: Potential | str | Path) -> Potential:
    """A potential, loaded if it is the name of one; see ``fastlr.load``."""
    return potential if isinstance(potential, Potential) else load(potential)


def require_switches(**switches: bool) -> None:
    """Raises InputError that names the argument which is neither True nor False."""
    for key, value in switches.items():
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(f"{key} must be True or False, got {value!r:.80}")


def require_functions(**functions: Callable) -> None:
    """Raises InputError that names the argument which cannot be called."""
    for key, function in functions.items():
        if not callable(function):
            raise InputError(f"{key} must be a function, got {function!r:.80}")
