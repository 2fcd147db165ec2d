"""Langevin dynamics, for the classical model and for the labelling method alike."""

import math

import numpy as np
from ase import units
from ase.data import atomic_masses, atomic_numbers

TIMESTEP = 1.0  # fs
HYDROGEN_MASS = 2.0  # amu, during the dynamics only: lets 1 fs resolve the O-H vibration well


def dynamics_masses(symbols):
    return np.array([HYDROGEN_MASS if s == "H" else atomic_masses[atomic_numbers[s]] for s in symbols])


def thermal_velocities(masses, temperature, rng):
    return rng.normal(size=(len(masses), 3)) * np.sqrt(units.kB * temperature / masses)[:, None]


def langevin(forces_at, x, v, masses, temperature, steps, rng, friction=0.02, force=None, finish=None):
    """Langevin dynamics (BAOAB) of the given number of steps; friction in 1/fs.

    `finish`, if given, is applied to the positions of the last step before its forces are evaluated.
    Returns positions, velocities and forces.
    """
    dt, m = TIMESTEP * units.fs, masses[:, None]
    keep = math.exp(-friction * TIMESTEP)
    kick = math.sqrt(1 - keep**2) * np.sqrt(units.kB * temperature / m)
    force = forces_at(x) if force is None else force
    for step in range(steps):
        v = v + 0.5 * dt * force / m
        x = x + 0.5 * dt * v
        v = keep * v + kick * rng.normal(size=x.shape)
        x = x + 0.5 * dt * v
        if finish is not None and step == steps - 1:
            x = finish(x)
        force = forces_at(x)
        v = v + 0.5 * dt * force / m
    return x, v, force


def confinement(x, radius):
    """Forces (eV/Å) that keep a cluster within a sphere about the origin; they never enter the labels."""
    r = np.linalg.norm(x, axis=1)
    return -0.5 * (np.maximum(r - radius, 0) / np.maximum(r, 1e-9))[:, None] * x
