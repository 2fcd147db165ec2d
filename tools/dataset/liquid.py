"""Equilibration: a packing moved by the classical model."""

import numpy as np

from .classical import ClassicalModel
from .langevin import confinement, dynamics_masses, langevin, thermal_velocities
from .molecules import symbols_of
from .packing import cluster_radius, pack


class ClassicalLiquid:
    """A packing moved by the classical model, from which fresh starting structures are drawn."""

    def __init__(self, molecules, cell, rng, temperature):
        self.molecules, self.cell, self.rng, self.temperature = molecules, cell, rng, temperature
        self.masses = dynamics_masses(symbols_of(molecules))
        self.x, owner = pack(molecules, cell, rng)
        self.model = ClassicalModel(molecules, owner, cell)
        for _ in range(100):  # capped steepest descent takes the overlaps out
            self.x = self.x + np.clip(0.01 * self.forces(self.x), -0.05, 0.05)
        self.v = thermal_velocities(self.masses, temperature, rng)

    def forces(self, x):
        force = np.clip(self.model(x), -15, 15)
        return force if self.cell is not None else force + confinement(x, cluster_radius(self.molecules) + 1.5)

    def advance(self, steps, temperature=None):
        temperature = temperature or self.temperature
        self.x, self.v, _ = langevin(self.forces, self.x, self.v, self.masses, temperature, steps, self.rng)
        return self.x
