"""fastlr as an ASE calculator.

atoms.calc = FastlrCalculator("aqueous-xtb", charge=+1)
atoms.get_potential_energy()
"""

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from fastlr.conditions import ARRAYS, INFO
from fastlr.engine.steps import Steps
from fastlr.errors import InputError
from fastlr.kernels.forks import Lock
from fastlr.potential import Potential, Prediction, load
from fastlr.structure_checks import as_structures
from fastlr.total_charge import total_charge

_OWN = ("_lock", "_server", "steps", "_evaluated", "_seen")  # of a calculator, not for its copies


class FastlrCalculator(Calculator):
    """Everything ASE may ask of a potential, from one evaluation a geometry.

    Properties, in ASE's units and conventions:

    - energy, free_energy: eV; at a given chemical potential mu the grand energy E - mu Q, whose derivatives the forces
      then are;
    - energies: (n,) eV, they sum to the energy. The Coulomb energy belongs to no atom; each gets an equal share of it,
      and of that in external potentials;
    - forces: (n, 3) eV/Å;
    - stress: (6,) eV/Å^3, Voigt order, tension positive; only for cells periodic in three directions;
    - charges: (n,) e, and dipole: (3,) e Å about the origin, without periodicity only; both only if the model has
      charges. The dipole is the sum of q r, not the energy's derivative by a field: see ``Prediction.polarisation``.

    Args:
        potential: a ``Potential``, or what ``fastlr.load`` takes.
        charge: total charge in e of structures that do not state theirs in ``atoms.info["charge"]``; the default is 0.
        options: further arguments of ``fastlr.load`` (backend, device, dtype, memory_budget) where that is called.

    Answers are kept until something that they depend on changes: atoms, cell, charge and conditions, which are compared
    by value, ``charge``, ``potential`` and what it is served by. Changing ``results`` or an array that was returned
    changes no later answer. Copies begin anew; several threads may share a calculator, and wait for each other.

    Attributes:
        potential: may be replaced by another.
        steps: carries neighbour lists and charges from one evaluation to the next.
        prediction: all that is known of the last structure (total charge, potential, polarisation, ...), or None.

    Raises:
        FastlrError: the model cannot be loaded; on evaluation, see ``Potential.predict``.
    """

    def __init__(self, potential: Potential | str | Path, charge: float | None = None, **options: Any):
        if isinstance(potential, Potential) and options:
            raise InputError(f"{', '.join(options)}: options of a model to be loaded, but a Potential was given")
        self.charge, self._lock = charge, Lock(reentrant=True)
        self.potential = potential if isinstance(potential, Potential) else load(potential, **options)
        super().__init__()

    @property
    def potential(self) -> Potential:
        return self._potential

    @potential.setter
    def potential(self, potential: Potential) -> None:
        if not isinstance(potential, Potential):
            raise InputError(f"a calculator's potential must be a Potential (fastlr.load), got {potential!r:.80}")
        self._potential, self.steps = potential, Steps(potential)
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        if potential.has_charges:
            self.implemented_properties += ["charges", "dipole"]
        self.reset()

    def set(self, charge: float | None = None, **others: Any) -> dict[str, Any]:
        """Set the total charge, as by ``calculator.charge``.

        Raises:
            InputError: for anything else.
        """
        if others:
            raise InputError(f"{next(iter(others))}: a FastlrCalculator has no parameter but 'charge'")
        if charge == self.charge or charge is None:
            return {}
        self.charge = charge
        self.reset()
        return {"charge": charge}

    def reset(self) -> None:
        """Forget the last structure and all answers."""
        super().reset()
        self.prediction: Prediction | None = None
        self._evaluated: list | None = None
        self._seen: dict[str, np.ndarray] | None = None  # a copy: somebody may change ``atoms`` of a calculator
        self._server = self.potential.operations
        self._answers: dict[str, Any] | None = None  # the results, where nobody changes them

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins anew, with the same potential and charge."""
        return {key: value for key, value in vars(self).items() if key not in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock(reentrant=True))
        self.potential = state["_potential"]

    def total_charge(self, atoms: Atoms) -> float:
        """Total charge in e with which a structure is evaluated."""
        return total_charge(atoms, self.charge)

    @property
    def found_charge(self) -> float:
        """Total charge in e of the last evaluation, given or found."""
        total = None if self.prediction is None else self.prediction.total_charge
        return self.total_charge(self.atoms) if total is None else total

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last evaluation, by however little.

        Unlike ASE's own, this sees the total charge and the conditions, and is quick: it is asked several times a step.
        """
        if self._seen is None:
            return list(all_changes)
        changes = [name for name, value in self._seen.items() if not np.array_equal(value, getattr(atoms, name))]
        if self._charges_depend_on(atoms) != self._evaluated:
            changes.append("charge")
        self.potential.require_unchanged()
        if self.potential.operations is not self._server:
            changes.append("potential")
        return changes

    def _charges_depend_on(self, atoms: Atoms) -> list:
        """What the charges depend on besides positions and elements; equal lists mean equal charges."""
        stated = [_fixed(atoms.info.get(key)) for key in INFO]
        arrays = [_fixed(atoms.arrays.get(key)) for key in ARRAYS]
        return [self.total_charge(atoms), *stated, *arrays]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """See ASE's own.

        Raises:
            InputError: there are no atoms.
        """
        with self._lock:
            if atoms is not None:
                as_structures([atoms])
            if atoms is None and self.atoms is None:
                raise InputError("the calculator has not been told of any atoms; give it some, or set atoms.calc")
            known = super().get_property(name, atoms, allow_calculation)
            if known is None:
                return None
            if self._answers is None:  # whatever has been done to the results in ``calculate`` is part of them
                self._answers = {
                    key: np.copy(value) if np.ndim(value) else value for key, value in self.results.items()
                }
            answer = self._answers.get(name, known)
            return np.copy(answer) if np.ndim(answer) else answer

    def calculate(self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes) -> None:
        """Evaluate all properties at once."""
        with self._lock:
            self.results, self._answers = {}, None
            if atoms is not None:
                as_structures([atoms])
            super().calculate(atoms, properties, system_changes)
            if self.atoms is None:
                raise InputError("the calculator has not been told of any atoms; give it some, or set atoms.calc")
            self._evaluated, self._server = self._charges_depend_on(self.atoms), self.potential.operations
            self._seen = {name: np.array(getattr(self.atoms, name)) for name in ("positions", "numbers", "cell", "pbc")}
            self.prediction = self.steps.predict(self.atoms, self.charge)
            self.results = ase_results(self.prediction)


def _fixed(value: Any) -> Any:
    """A value that equals another's only if both are the same to the last bit, whatever becomes of the original."""
    if isinstance(value, dict):
        return {key: _fixed(entry) for key, entry in value.items()}
    try:
        array = np.array(value)
    except ValueError:  # a ragged list, which is refused where it is read
        return repr(value)
    return repr(value) if array.dtype == object else (array.shape, array.dtype.str, array.tobytes())


def ase_results(prediction: Prediction) -> dict[str, Any]:
    """A prediction as the results of an ASE calculator: what does not exist for the structure is left out."""
    energies, energy = prediction.atomic_energies, prediction.energy
    if prediction.coulomb_energy is not None:
        shared = prediction.coulomb_energy + prediction.external_energy
        if prediction.grand_energy is not None:
            energy = prediction.grand_energy
            shared += energy - prediction.energy
        energies = energies + shared / max(len(energies), 1)
    results = {
        "energy": energy,
        "free_energy": energy,
        "energies": energies,
        "forces": prediction.forces,
        "stress": None if prediction.stress is None else full_3x3_to_voigt_6_stress(prediction.stress),
        "charges": prediction.charges,
        "dipole": prediction.dipole,
    }
    return {name: np.copy(value) if np.ndim(value) else value for name, value in results.items() if value is not None}
