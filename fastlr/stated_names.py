"""Names under which structures state charges, spins and what acts on charges."""

from functools import cache

# In ``atoms.info``, in small letters without what separates words, as files and data sets have them.
CHARGE_NAMES = frozenset(
    ["charge", "totalcharge", "totcharge", "netcharge", "systemcharge", "molecularcharge", "molcharge", "formalcharge"]
)
SPIN_NAMES = frozenset(["spin", "totalspin", "multiplicity", "spinmultiplicity", "mult"])
# Conditions (``fastlr.conditions``), in ``atoms.arrays`` and in ``atoms.info``.
ARRAYS = ("fragment", "external_potential")
INFO = ("fragment_charge", "electric_field", "chemical_potential")


def plain_name(name: str) -> str:
    """A name in small letters without what separates words."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


@cache
def meaning(key) -> str | None:
    """What a name in ``atoms.info`` stands for: "charge", "spin", or nothing of concern."""
    if not isinstance(key, str):
        return None
    plain = plain_name(key)
    return "charge" if plain in CHARGE_NAMES else "spin" if plain in SPIN_NAMES else None
