"""Constraints of ASE name atoms by numbers, and lengths between them, which they do not check themselves."""

from typing import Any

import numpy as np
from ase import Atoms, constraints

from fastlr.errors import InputError, StructureName


def require_usable_constraints(atoms: Atoms, name: StructureName) -> None:
    """Check that constraints are of atoms that there are, and take the lengths to hold from the structure.

    Raises:
        InputError: an atom does not exist or is held to itself, or a length is zero; the message names the constraint.
    """
    for constraint in atoms.constraints:
        who = f"{name}: the constraint {type(constraint).__name__}"
        for group in _groups(constraint, who):
            _require_atoms(group, len(atoms), who)
        if isinstance(constraint, constraints.FixedMode) and np.size(constraint.mode) != 3 * len(atoms):
            raise InputError(f"{who} is of {np.size(constraint.mode) // 3} atoms, not of {len(atoms)}")
        _take_lengths(constraint, atoms, who)


def _groups(constraint: Any, who: str) -> list[tuple[np.ndarray, bool]]:
    """Numbers of atoms that a constraint names, and whether these have to differ."""
    for key, width in (("pairs", 2), ("triples", 3)):
        rows = np.asarray(getattr(constraint, key, []))
        if rows.size and (rows.ndim != 2 or rows.shape[1] != width):
            raise InputError(f"{who} takes {key} of atoms, got {rows.tolist()!r:.80}")
        if rows.size:
            return [(row, True) for row in rows]
    if isinstance(constraint, constraints.FixInternals):
        held = (*constraint.bonds, *constraint.angles, *constraint.dihedrals)
        combined = [np.asarray(pair[:2]) for entry in constraint.bondcombos for pair in entry[1]]
        return [(group, True) for group in [*(np.asarray(entry[1]) for entry in held), *combined]]
    if hasattr(constraint, "indices"):  # of Hookean and of forces between atoms
        return [(np.ravel(constraint.indices), not isinstance(constraint, constraints.FixParametricRelations))]
    index = getattr(constraint, "index", None)
    return [] if index is None or isinstance(index, slice) else [(np.atleast_1d(index), False)]  # a slice: all atoms


def _require_atoms(group: tuple[np.ndarray, bool], n: int, who: str) -> None:
    numbers, differ = group
    if not numbers.size:
        return
    if numbers.dtype.kind not in "iu":
        raise InputError(f"{who} names atoms by {numbers.tolist()!r:.80}, which are no whole numbers")
    missing = numbers[(numbers < -n) | (numbers >= n)]
    if missing.size:
        raise InputError(f"{who} names atom {missing[0]}, which does not exist: they are numbered from 0 to {n - 1}")
    if differ and len(np.unique(numbers % n)) < numbers.size:
        raise InputError(f"{who} holds an atom to itself: {numbers.tolist()}")


def _take_lengths(constraint: Any, atoms: Atoms, who: str) -> None:
    """Else ASE would take them at the first step, and those of another configuration after a resumption."""
    if isinstance(constraint, constraints.FixLinearTriatomic):
        if len(constraint.triples):
            _require_lengths(constraint.initialize_bond_lengths(atoms).min(axis=1), constraint.triples, who)
            constraint.initialize(atoms)
    elif isinstance(constraint, constraints.FixBondLengths):
        if constraint.bondlengths is None:
            constraint.bondlengths = constraint.initialize_bond_lengths(atoms)
        _require_lengths(np.asarray(constraint.bondlengths), constraint.pairs, who)


def _require_lengths(lengths: np.ndarray, groups: np.ndarray, who: str) -> None:
    if lengths.shape != (len(groups),) or lengths.dtype.kind not in "fiu":
        raise InputError(f"{who} needs a length for each of its {len(groups)} pairs, got {lengths.tolist()!r:.80}")
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0.0)))
    if len(bad):
        k = bad[0]
        raise InputError(f"{who} holds atoms {groups[k].tolist()} at {lengths[k]:g} Å; lengths must be positive")
