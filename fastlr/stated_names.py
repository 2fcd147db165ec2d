"""Names under which structures state charges, spins and what acts on charges."""

from functools import cache

# In ``atoms.info``, in small letters without what separates words, as files and data sets have them.
CHARGE_NAMES = frozenset(
    f"{prefix}charge{suffix}"
    for prefix in ("", "total", "tot", "net", "overall", "system", "molecular", "molecule", "mol", "cluster", "formal")
    for suffix in ("", "e", "state")
) | {"qtot", "qtotal", "totalq"}
SPIN_NAMES = frozenset(
    ["spin", "totalspin", "multiplicity", "spinmultiplicity", "mult", "uhf", "nspin", "unpairedelectrons"]
)
# Conditions (``fastlr.conditions``), in ``atoms.arrays`` and in ``atoms.info``.
ARRAYS = ("fragment", "external_potential")
INFO = ("fragment_charge", "electric_field", "chemical_potential")
# These are read under one spelling only; others are refused.
CONDITION_NAMES = {
    "fragment": "fragment",
    "fragments": "fragment",
    "fragmentcharge": "fragment_charge",
    "fragmentcharges": "fragment_charge",
    "externalpotential": "external_potential",
    "externalpotentials": "external_potential",
    "electricfield": "electric_field",
    "efield": "electric_field",
    "externalfield": "electric_field",
    "chemicalpotential": "chemical_potential",
}


def plain_name(name: str) -> str:
    """A name in small letters without what separates words."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


@cache
def meaning(key) -> str | None:
    """The meaning of a name in ``atoms.info``: "charge", "spin", the name of a condition, or nothing of concern."""
    if not isinstance(key, str):
        return None
    plain = plain_name(key)
    return "charge" if plain in CHARGE_NAMES else "spin" if plain in SPIN_NAMES else CONDITION_NAMES.get(plain)
