"""Relaxation to a minimum of the energy, through ASE's own optimisers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, constraints
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from fastlr.errors import FastlrError, InputError, StructureName
from fastlr.interop.ase import FastlrCalculator
from fastlr.potential import Potential
from fastlr.structure_checks import as_structure
from fastlr.total_charge import require_stated_charge

from .arguments import loaded, number, require_functions, require_switches, whole
from .constrained import require_usable_constraints
from .start import satisfied_constraints

OPTIMIZERS = {"fire": FIRE, "bfgs": BFGS, "lbfgs": LBFGS}
# Constraints that neither add to the energy nor hold lengths; fixed atoms go along with the cell
IN_CELLS = tuple(
    getattr(constraints, name)
    for name in ("FixAtoms", "FixCartesian", "FixScaled", "FixedPlane", "FixedLine", "FixCom", "FixSymmetry")
)


@dataclass(frozen=True)
class RelaxReport:
    """How a relaxation went: steps taken, whether the forces fell below fmax, energy (eV), largest force (eV/Å)."""

    steps: int
    converged: bool
    energy: float
    max_force: float


def relax(
    atoms: Atoms,
    potential: Potential | str | Path,
    *,
    fmax: float = 0.01,
    steps: int = 1000,
    cell: bool = False,
    optimizer: str = "lbfgs",
    charge: float | None = None,
    on_step: Callable[[RelaxReport], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RelaxReport:
    """Move the atoms, in place, to where no force is larger than ``fmax``.

    Args:
        atoms: where to start; afterwards it carries the calculator with its results.
        potential: gives the forces; what ``fastlr.load`` takes is loaded.
        fmax: eV/Å; with ``cell`` also for the gradient with respect to the logarithm of the deformation, which ASE
            divides by the number of atoms.
        steps: at most so many.
        cell: relax the cell as well.
        optimizer: "fire", "bfgs" or "lbfgs".
        charge: total charge in e, unless the structure states its own.
        on_step: called at the start and after every step.
        should_stop: asked after every step; on True it returns early.

    Raises:
        InputError: the structure or an argument cannot be used, or ``cell`` without periodicity in three directions.
        NonFiniteError: an energy or force is not finite.
    """
    atoms = as_structure(atoms)
    require_switches(cell=cell)
    require_functions(on_step=on_step, should_stop=should_stop)
    fmax, steps = number("fmax", fmax, above=0.0, unit="eV/Å"), whole("steps", steps, least=0)
    if not (isinstance(optimizer, str) and optimizer in OPTIMIZERS):
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r:.80}")
    if not len(atoms):
        raise InputError(f"{StructureName(atoms, 0)}: there is nothing to move")
    require_usable_constraints(atoms, StructureName(atoms, 0))
    if cell and not atoms.pbc.all():
        raise InputError(
            f"relaxing the cell needs one that is periodic in three directions; {atoms.get_chemical_formula()} is "
            f"periodic in {int(atoms.pbc.sum())}"
        )
    for constraint in atoms.constraints if cell else ():
        if type(constraint) not in IN_CELLS:
            raise InputError(
                f"{StructureName(atoms, 0)}: the constraint {type(constraint).__name__} has no part in the stress: "
                "the cell cannot be relaxed with it; remove it, or leave the cell as it is"
            )
    potential = loaded(potential)
    if potential.has_charges:
        require_stated_charge(atoms, charge)
    atoms.calc = FastlrCalculator(potential, charge)
    atoms.get_potential_energy()  # an unusable structure is reported as it is, not as a failed step
    with satisfied_constraints():
        search = OPTIMIZERS[optimizer](FrechetCellFilter(atoms) if cell else atoms, logfile=None)
        return _search(atoms, search, fmax, steps, on_step, should_stop)


def _search(atoms: Atoms, search, fmax: float, steps: int, on_step: Callable, should_stop: Callable) -> RelaxReport:
    converged = False
    try:
        for converged in search.irun(fmax=fmax, steps=steps):
            report = _report(atoms, search.nsteps, bool(converged))
            on_step(report)
            if should_stop():
                break
    except FastlrError as error:
        raise type(error)(f"step {search.nsteps + 1}: {error}") from error
    return report


def _report(atoms: Atoms, steps: int, converged: bool) -> RelaxReport:
    forces = atoms.get_forces()
    largest = float(np.linalg.norm(forces, axis=1).max(initial=0.0))
    return RelaxReport(steps, converged, atoms.get_potential_energy(), largest)
