"""Elements by the names of atoms."""

import re

from ase import Atoms
from ase.data import atomic_numbers

from fastlr.errors import InputError


def is_symbol(text: str) -> bool:
    """Whether it is the symbol of an element, in whatever case."""
    return text.capitalize() in atomic_numbers and text.capitalize() != "X"


def guessed_elements(atoms: Atoms) -> dict[str, str]:
    """Each name of an atom and what it was taken for, where a format has such names and no elements.

    Raises:
        InputError: a name may stand for two elements, as CA for carbon and calcium.
    """
    taken = dict(zip(atoms.arrays.get("atomtypes", atoms.symbols), atoms.symbols, strict=True))
    for name, symbol in taken.items():
        may_be = _readings(str(name))
        if may_be != {symbol}:
            others = " or ".join(sorted(may_be)) or "no element"
            raise InputError(f"an atom named '{name}' may be {others}; use a file that states elements")
    return taken


def _readings(name: str) -> set[str]:
    """Possible elements of the name of an atom."""
    letters = re.match(r"[^A-Za-z]*([A-Za-z]*)", name)[1]
    if len(letters) > 1 and letters[1].islower():
        return {letters[:2]} if is_symbol(letters[:2]) else set()
    return {text.capitalize() for text in (letters[:1], letters[:2]) if text and is_symbol(text)}
