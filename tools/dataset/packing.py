"""Random packings: molecules turned at random and spread over a cell or a sphere."""

import math

import numpy as np
from ase import units

from .molecules import MOLECULES, real_masses, symbols_of


def random_rotation(rng):
    """A rotation matrix drawn uniformly (from a random unit quaternion)."""
    a, b, c, d = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
        ]
    )


def random_cell(volume, rng):
    """Lattice vectors (rows, Å) of the given volume: cubic (half of the time), orthorhombic or triclinic."""
    shape = rng.choice(["cubic", "orthorhombic", "triclinic"], p=[0.5, 0.25, 0.25])
    cell = np.eye(3)
    if shape != "cubic":
        cell = np.diag(rng.uniform(0.88, 1.14, size=3))
    if shape == "triclinic":
        cell[1, 0], cell[2, 0], cell[2, 1] = rng.uniform(-0.22, 0.22, size=3)
    return np.round(cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3), 5)


def density_cell(molecules, density, rng):
    """A random cell in which the molecules have the given density (g/cm3)."""
    mass = real_masses(symbols_of(molecules)).sum()
    return random_cell(mass / (density * units.kg / units.m**3 * 1000), rng)


def cluster_radius(molecules):
    """Radius (Å) of a sphere that holds the molecules at about the density of water."""
    return (3 * 30.0 * len(molecules) / (4 * math.pi)) ** (1 / 3)


def pack(molecules, cell, rng):
    """Positions of randomly turned molecules, each placed at the emptiest of 60 random points.

    Returns the positions (Å) and the molecule number of every atom.
    """
    centres = []
    for _ in molecules:
        if cell is None:
            direction = rng.normal(size=(60, 3))
            direction /= np.linalg.norm(direction, axis=1)[:, None]
            trial = direction * cluster_radius(molecules) * rng.uniform(size=(60, 1)) ** (1 / 3)
        else:
            trial = rng.uniform(size=(60, 3)) @ cell
        if centres:
            delta = trial[:, None, :] - np.array(centres)[None, :, :]
            if cell is not None:
                delta -= np.round(delta @ np.linalg.inv(cell)) @ cell
            nearest = np.linalg.norm(delta, axis=2).min(axis=1)
            centres.append(trial[np.argmax(nearest)])
        else:
            centres.append(trial[0])
    positions, owner = [], []
    for number, (name, centre) in enumerate(zip(molecules, centres, strict=True)):
        shape = np.array(MOLECULES[name][1], dtype=float) @ random_rotation(rng).T
        positions.extend(centre + shape)
        owner.extend([number] * len(shape))
    return np.array(positions), np.array(owner)
