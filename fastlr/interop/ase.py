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
from fastlr.potential import Potential, Prediction, load
from fastlr.total_charge import total_charge


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

    Attributes:
        steps: carries neighbour lists and charges from one evaluation to the next.
        prediction: all that is known of the last structure (total charge, potential, polarisation, ...), or None.

    Raises:
        FastlrError: the model cannot be loaded; on evaluation, see ``Potential.predict``.
    """

    def __init__(self, potential: Potential | str | Path, charge: float | None = None, **options: Any):
        super().__init__()
        self.potential = potential if isinstance(potential, Potential) else load(potential, **options)
        self.charge = charge
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        if self.potential.has_charges:
            self.implemented_properties += ["charges", "dipole"]
        self.steps = Steps(self.potential)
        self.prediction: Prediction | None = None
        self._evaluated: list | None = None

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
        known = self.atoms
        if known is None:
            return list(all_changes)
        changes = [
            name for name in ("positions", "numbers") if not np.array_equal(known.arrays[name], atoms.arrays[name])
        ]
        changes += [name for name in ("cell", "pbc") if not np.array_equal(getattr(known, name), getattr(atoms, name))]
        if self._charges_depend_on(atoms) != self._evaluated:
            changes.append("charge")
        return changes

    def _charges_depend_on(self, atoms: Atoms) -> list:
        """What the charges depend on besides positions and elements; equal lists mean equal charges."""
        stated = [_fixed(atoms.info.get(key)) for key in INFO]
        arrays = [atoms.arrays[key].tobytes() if key in atoms.arrays else None for key in ARRAYS]
        return [self.total_charge(atoms), *stated, *arrays]

    def calculate(self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes) -> None:
        """Evaluate all properties at once."""
        super().calculate(atoms, properties, system_changes)
        self._evaluated = self._charges_depend_on(self.atoms)
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
