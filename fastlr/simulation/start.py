"""Where a run starts: a structure that can be moved, its velocities, and the temperature that they mean."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from ase import Atoms, constraints, units

from fastlr.errors import InputError, StructureName
from fastlr.stated_names import plain_name

from .constrained import require_usable_constraints

# Those under which ASE's integrators keep the energy, to second order in the time step
HONOURED = (
    constraints.FixAtoms,
    constraints.FixCartesian,
    constraints.FixedPlane,
    constraints.FixedLine,
    constraints.FixCom,
    constraints.FixBondLengths,
    constraints.FixLinearTriatomic,
    constraints.Hookean,
)
SATISFIED = 1e-3  # Å, by which positions of files are rounded at most
# ... and of these, those that leave the momentum of the centre of mass alone
_INTERNAL = (constraints.FixBondLengths, constraints.FixLinearTriatomic)
VELOCITIES = {"v", "vel", "velo", "vels", "velos", "velocity", "velocities", "vx", "vy", "vz"}


def require_movable(atoms: Atoms) -> None:
    """Check velocities, masses and constraints of a structure, and take the held lengths from it.

    Raises:
        InputError: there are no atoms, a number is not finite, a mass not positive, a constraint not honoured, or
            velocities have no known unit.
    """
    name = StructureName(atoms, 0)
    if not len(atoms):
        raise InputError(f"{name}: there is nothing to move")
    masses = atoms.get_masses()
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0.0)))
    if len(bad):
        k = bad[0]
        raise InputError(f"{name}: the mass of atom {k} ({atoms.symbols[k]}) is {masses[k]:g} u; it must be positive")
    require_finite_velocities(atoms, name)
    _require_known_velocities(atoms, name)
    for constraint in atoms.constraints:
        if type(constraint) not in HONOURED:
            raise InputError(
                f"{name}: the constraint {type(constraint).__name__} is none that dynamics honours, which are "
                f"{', '.join(known.__name__ for known in HONOURED)}; remove it, or choose one of these"
            )
    require_usable_constraints(atoms, name)
    for constraint in atoms.constraints:
        _require_satisfied(constraint, atoms, name)


def _require_satisfied(constraint, atoms: Atoms, name: StructureName) -> None:
    """Raises InputError where a constraint would move atoms in the first step, whatever the forces are."""
    held = atoms.positions.copy()
    with satisfied_constraints():
        constraint.adjust_positions(atoms, held)
    away = np.linalg.norm(held - atoms.positions, axis=1)
    k = int(away.argmax())
    if not away[k] < SATISFIED:
        raise InputError(
            f"{name}: does not satisfy the constraint {type(constraint).__name__}: atom {k} is {away[k]:.2g} Å from "
            "where that holds it; put it there"
        )


def require_finite_velocities(atoms: Atoms, name: StructureName | str) -> None:
    """Raises InputError that names the atom, by whose velocity the one of a run would become what it is."""
    if np.isfinite(atoms.arrays.get("momenta", 0.0)).all():  # and masses are positive
        return
    velocities = atoms.get_velocities()
    bad = np.flatnonzero(~np.isfinite(velocities).all(axis=1))
    if len(bad):
        k = bad[0]
        raise InputError(
            f"{name}: the velocity of atom {k} ({atoms.symbols[k]}) is not finite: {velocities[k].tolist()}"
        )


def _require_known_velocities(atoms: Atoms, name: StructureName | str) -> None:
    """Raises InputError that names a column with velocities, of a unit that nobody knows, where there are no
    momenta."""
    if "momenta" in atoms.arrays and atoms.arrays["momenta"].any():
        return
    for key, values in atoms.arrays.items():
        if plain_name(key) in VELOCITIES and values.dtype.kind in "iuf" and values.any():
            raise InputError(
                f"{name}: the velocities in its column '{key}' are not read, for their unit is not known; state "
                "momenta in units of ASE (a column momenta:R:3), or take it out to have velocities drawn"
            )


@contextmanager
def satisfied_constraints() -> Iterator[None]:
    """Turn ASE's errors about unsatisfied constraints into an ``InputError``."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Did not converge":
            raise
        raise InputError("the constraints of bond lengths could not be satisfied") from error


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator, at_rest: bool) -> None:
    """Velocities from the Maxwell-Boltzmann distribution, within the constraints.

    Args:
        temperature: K.
        at_rest: without motion of the centre of mass.
    """
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature))
    if at_rest:
        momenta = atoms.get_momenta()
        atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


def keeps_centre(atoms: Atoms) -> bool:
    """Whether the centre of mass moves on as it does, at constant energy and without a field on a net charge."""
    return len(atoms) > 1 and all(isinstance(constraint, _INTERNAL) for constraint in atoms.constraints)


def centre_rests(atoms: Atoms) -> bool:
    """Whether the centre of mass does not move, to rounding."""
    momenta = atoms.get_momenta()
    return bool(np.abs(momenta.sum(axis=0)).max() <= 1e-6 * max(np.abs(momenta).sum(), 1e-300))


def degrees_of_freedom(atoms: Atoms, rests: bool) -> int:
    """Of the velocities: three an atom, less those that constraints hold, however often, and less three where the
    centre of mass is and stays at rest."""
    fixed, removed = np.zeros((len(atoms), 3), bool), 3 * rests
    for constraint in atoms.constraints:
        if isinstance(constraint, constraints.FixAtoms):
            fixed[constraint.index] = True
        elif isinstance(constraint, constraints.FixCartesian):
            fixed[constraint.index] |= np.asarray(constraint.mask, bool)
        else:
            removed += constraint.get_removed_dof(atoms)
    return max(fixed.size - int(fixed.sum()) - int(removed), 0)


def temperature(kinetic: float, freedom: int) -> float:
    """K, from the kinetic energy in eV; zero where nothing can move."""
    return 2.0 * kinetic / (freedom * units.kB) if freedom else 0.0
