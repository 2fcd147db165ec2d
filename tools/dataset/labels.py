"""Labelling with GFN1-xTB (tblite), and the checks that a labelled frame has to pass."""

import numpy as np
from ase import Atoms

from .extxyz import format_frame
from .molecules import real_masses

METHOD = "GFN1-xTB"
ACCURACY = 0.5  # tblite numerical accuracy; 1 is its default, smaller is tighter
MAX_FORCE = 25.0  # eV/Å, frames beyond are thrown away
MAX_OH = 1.5  # Å, a longer O-H bond counts as broken where no proton is expected to move


class Discard(Exception):
    """A frame that must not enter the data set; the message is the reason to count."""


def label_positions(x, symbols, cell):
    """Positions as stored: five decimals, and for molecules the centre of mass at the origin."""
    if cell is None:
        masses = real_masses(symbols)
        x = x - masses @ x / masses.sum()
    return np.round(x, 5)


class Reference:
    """GFN1-xTB for one composition: forces for the dynamics and labelled frames."""

    def __init__(self, symbols, cell, charge, accuracy=ACCURACY):
        from tblite.ase import TBLite

        self.charge = charge
        self.atoms = Atoms(symbols, cell=cell, pbc=cell is not None)
        self.atoms.calc = TBLite(
            method=METHOD, charge=float(charge), multiplicity=1, verbosity=0, accuracy=accuracy, max_iterations=150
        )

    def forces(self, x, cell=None):
        from ase.calculators.calculator import CalculationFailed

        if cell is not None:
            self.atoms.set_cell(cell)
        self.atoms.set_positions(x)
        try:
            force = self.atoms.get_forces()
        except CalculationFailed:
            raise Discard("SCF failure") from None
        if not np.isfinite(force).all():
            raise Discard("non-finite value")
        return force

    def frame(self, info, whole_water=False):
        """The present structure as extxyz text, or Discard if it fails a check."""
        atoms, results = self.atoms, self.atoms.calc.results
        if np.abs(np.linalg.norm(results["forces"], axis=1)).max() > MAX_FORCE:
            raise Discard(f"force above {MAX_FORCE:g} eV/Å")
        values = [results["energy"], results["forces"], results["charges"]]
        if not all(np.isfinite(value).all() for value in values):
            raise Discard("non-finite value")
        if abs(results["charges"].sum() - self.charge) > 1e-4:
            raise Discard("charges do not sum to the total charge")
        if whole_water and not waters_whole(atoms):
            raise Discard("broken O-H bond")
        return format_frame(atoms, results, self.charge, info)


def waters_whole(atoms):
    """Whether every H has exactly its own O within reach (atoms ordered O H H for each water)."""
    symbols = atoms.get_chemical_symbols()
    for h in (i for i, s in enumerate(symbols) if s == "H"):
        o = h - 1 if symbols[h - 1] == "O" else h - 2
        if atoms.get_distance(o, h, mic=bool(atoms.pbc.any())) > MAX_OH:
            return False
    return True
