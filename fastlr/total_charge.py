"""The total charge of a structure, from all the places where structures state one."""

import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from .conditions import conditions_of, mentions_conditions, require_electrons
from .errors import InputError, StructureName
from .plain_numbers import plain_number
from .stated_names import meaning

CLOSE = 0.01  # e; charges of atoms are written with few digits


def each_charge(charge: float | Sequence[float] | None, count: int) -> list[float | None]:
    """A default charge for each structure, of one for all or one for each.

    Raises:
        InputError: there are more or fewer, or it is no sequence.
    """
    if charge is None or (not isinstance(charge, (list, tuple)) and np.ndim(charge) == 0):
        return [charge] * count
    if len(charge) != count:
        raise InputError(f"{count} structures but {len(charge)} charges were given")
    return list(charge)


def total_charge(atoms: Atoms, default: float | None = None, index: int = 0) -> float:
    """Total charge of a structure in e: the stated one, else 0; or the sum of those of its fragments, if it names any
    (see ``conditions.conditions_of``)."""
    return conditions_of(atoms, StructureName(atoms, index), stated_charge(atoms, default, index))[1]


def stated_charge(atoms: Atoms, default: float | None = None, index: int = 0) -> float | None:
    """The stated total charge of a structure in e, else ``default``; None if neither is there.

    A structure states it in ``atoms.info["charge"]``, or under another of ``CHARGE_NAMES`` ("total_charge", ...), or by
    initial charges of its atoms that are not all zero, whose sum must then be a whole number within ``CLOSE``. None
    states nothing. Of spins, on which no model depends, a warning tells once.

    Raises:
        InputError: it is no finite number, beyond the number of electrons, or stated twice and differently.
    """
    if default is None and not atoms.info and len(atoms.arrays) == 2:  # which are numbers and positions
        return None
    found: dict[str, float] = {}
    for key, value in atoms.info.items():
        means = meaning(key) if value is not None else None
        if means == "charge":
            found[f"atoms.info[{key!r}]"] = _charge(value, f"atoms.info[{key!r}]", atoms, index)
        elif means == "spin":
            _warn_of_spin(key, value, atoms, index)
        elif means is not None and means != key:
            raise InputError(f"{StructureName(atoms, index)}: {key!r} is not read; call it {means!r}")
    for key in atoms.arrays:
        means = meaning(key)
        if means not in (None, "charge", "spin", key):
            raise InputError(f"{StructureName(atoms, index)}: {key!r} is not read; call it {means!r}")
    if "initial_magmoms" in atoms.arrays and _is_set(atoms.arrays["initial_magmoms"]):
        _warn_of_spin("initial_magmoms", "not zero", atoms, index)
    argument = None if default is None else _charge(default, "the argument 'charge'", atoms, index)
    where, stated = next(iter(found.items()), ("the argument 'charge'", argument))
    for other, value in found.items():
        if value != stated:
            raise _contradiction(atoms, index, where, stated, other, value)
    if "initial_charges" in atoms.arrays and _is_set(atoms.arrays["initial_charges"]):
        stated = _by_initial_charges(atoms, index, where, stated)
    return stated


def _is_set(values: np.ndarray) -> bool:
    """Whether any is another than zero."""
    return bool((values != 0).any())


def _charge(value, where: str, atoms: Atoms, index: int) -> float:
    """A number in e, checked."""
    single = hasattr(value, "item") and np.prod(np.shape(value)) == 1  # as some formats have it
    charge = plain_number(value.item() if single else value)
    if charge is None:
        raise InputError(f"{StructureName(atoms, index)}: the charge must be a finite number, got {value!r} as {where}")
    require_electrons(float(charge), atoms.numbers, StructureName(atoms, index))
    return float(charge)


def _by_initial_charges(atoms: Atoms, index: int, where: str, stated: float | None) -> float:
    """The stated total charge, or the sum of the initial charges of the atoms.

    Raises:
        InputError: these are two, or the sum is no whole number.
    """
    charges = atoms.arrays["initial_charges"]
    if charges.dtype.kind not in "iuf":
        raise InputError(f"{StructureName(atoms, index)}: its initial charges are no numbers, but {charges.dtype}")
    total = float(np.sum(charges, dtype=np.float64))
    if stated is not None:
        if not abs(total - stated) <= charge_tolerance(len(atoms)):
            raise _contradiction(atoms, index, where, stated, "the sum of its initial charges", total)
        return stated
    if not abs(total - np.round(total)) <= CLOSE:
        raise InputError(
            f"{StructureName(atoms, index)}: its initial charges add up to {total:.4g} e, which is no whole number; "
            "state the total charge in atoms.info['charge'], or remove them (atoms.set_initial_charges(None))"
        )
    return _charge(float(np.round(total)), "the sum of its initial charges", atoms, index)


def _contradiction(atoms: Atoms, index: int, where: str, value: float, other: str, differs: float) -> InputError:
    return InputError(
        f"{StructureName(atoms, index)}: {where} says a total charge of {value:.6g} e, but {other} {differs:.6g} e; "
        "keep the right one"
    )


def require_stated_charge(atoms: Atoms, default: float | None) -> None:
    """As ``require_charge_of_labels``, unless a charge or a condition is stated, or there is a default (e)."""
    if stated_charge(atoms, default) is None and not mentions_conditions(atoms):
        require_charge_of_labels(atoms, 0)


def require_charge_of_labels(atoms: Atoms, index: int) -> None:
    """Refuse a structure without a stated total charge, but with charges of its atoms that add up to one.

    Args:
        atoms: charges are those of its calculator, or arrays with names that end in "charge" or "charges".

    Raises:
        InputError: it would be evaluated as neutral.
    """
    if atoms.calc is None and len(atoms.arrays) == 2:
        return
    own = plain_number(getattr(atoms.calc, "charge", None))  # of a calculator like our own
    if own:
        raise _unstated(atoms, index, f"its calculator has a charge of {own:g} e")
    results = getattr(atoms.calc, "results", None) or {}
    named = {"its charge labels": results.get("charges")}
    for key, values in atoms.arrays.items():
        if key != "initial_charges" and str(key).lower().rstrip("s").endswith("charge"):
            named[f"its atoms.arrays[{key!r}]"] = values
    for name, labels in named.items():
        if labels is None or np.shape(labels) != (len(atoms),) or np.asarray(labels).dtype.kind not in "iuf":
            continue
        total = float(np.sum(labels))
        if not abs(total) <= charge_tolerance(len(atoms)):
            raise _unstated(atoms, index, f"{name} add up to {total:.4g} e")


def _unstated(atoms: Atoms, index: int, what: str) -> InputError:
    return InputError(
        f"{StructureName(atoms, index)}: {what}, but it states no total charge; state it in atoms.info['charge'], or "
        "as the argument 'charge' (0 if it is neutral)"
    )


def charge_tolerance(num_atoms: int) -> float:
    """How far (e) labels of so many atoms may be from the total charge: population analyses and rounded digits."""
    return min(0.02 + 1e-4 * num_atoms, 0.25)


_warned: set[str] = set()


def warn_once(key: str, message: str) -> None:
    """Warn, but once in this process for each ``key``."""
    if key not in _warned:
        warnings.warn(message, stacklevel=2)
        _warned.add(key)  # after it was told: it may be an error


def _warn_of_spin(key: str, value, atoms: Atoms, index: int) -> None:
    singlet = np.isscalar(value) and value == (1 if "mult" in key.lower() else 0)
    if not singlet and key not in _warned:
        warn_once(
            key,
            f"{StructureName(atoms, index)}: states {key!r} ({value!r:.40}), on which no model of fastlr depends: its "
            "energy is that of the spin states the model was trained on (said once)",
        )


def warn_of_unused_charge(charge: float, atoms: Atoms, index: int) -> None:
    """Warn once of a total charge (e) of a structure, given to a model without charges."""
    if charge and "charge" not in _warned:
        warn_once(
            "charge",
            f"{StructureName(atoms, index)}: has a charge of {charge:g} e, on which this model, one without charges, "
            "does not depend (said once)",
        )
