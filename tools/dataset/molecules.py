"""The molecules of the data set: their shapes, charges and masses."""

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

# Molecules as (symbols, positions in Å). The first atom is the one the molecule is placed by.
MOLECULES = {
    "H2O": ("OHH", [[0, 0, 0], [0.770, 0.590, 0], [-0.770, 0.590, 0]]),
    "H3O": ("OHHH", [[0, 0, 0], [0.935, 0, 0.30], [-0.468, 0.810, 0.30], [-0.468, -0.810, 0.30]]),
    "OH": ("OH", [[0, 0, 0], [0.97, 0, 0]]),
    "Na": ("Na", [[0, 0, 0]]),
    "Cl": ("Cl", [[0, 0, 0]]),
}
MOLECULE_CHARGE = {"H2O": 0, "H3O": 1, "OH": -1, "Na": 1, "Cl": -1}


def symbols_of(molecules):
    return [symbol for name in molecules for symbol in Atoms(MOLECULES[name][0]).get_chemical_symbols()]


def real_masses(symbols):
    return np.array([atomic_masses[atomic_numbers[s]] for s in symbols])


def total_charge(molecules):
    return sum(MOLECULE_CHARGE[name] for name in molecules)
