"""Frames of xTB dynamics, for the families of clusters and cells."""

from collections import Counter

from .compositions import box_molecules, cluster_molecules, pick_temperature
from .labels import Discard, Reference, label_positions
from .langevin import confinement, dynamics_masses, langevin, thermal_velocities
from .liquid import ClassicalLiquid
from .molecules import symbols_of, total_charge
from .packing import cluster_radius, density_cell


def dynamics_trajectory(task, rng):
    """Frames of xTB dynamics of a cluster or a cell."""
    stratum = task["stratum"]
    periodic = "-box" in stratum
    temperature = pick_temperature(rng, periodic)
    friction, whole_water = 0.02, "proton" not in stratum
    if task["family"] == "large-box":
        molecules, temperature = ["Na", "Cl"] * 2 + ["H2O"] * (64 if stratum == "large-box-64" else 48), 320
        cell = density_cell(molecules, 1.08, rng)
    elif periodic:
        molecules, density = box_molecules(stratum, rng)
        cell = density_cell(molecules, density, rng)
    else:
        molecules, cell = cluster_molecules(stratum, rng), None
    liquid = ClassicalLiquid(molecules, cell, rng, 500.0)
    liquid.advance(800 if periodic else 300)  # melt
    liquid.advance(300 if periodic else 100, temperature)
    return sample(task, molecules, cell, liquid.x, temperature, friction, whole_water, rng)


def sample(task, molecules, cell, x, temperature, friction, whole_water, rng):
    """Equilibrate with xTB from positions x, then collect frames. Returns frame texts and counts of discards."""
    symbols = symbols_of(molecules)
    charge = total_charge(molecules)
    masses, radius = dynamics_masses(symbols), cluster_radius(molecules) + 1.5
    reference, discarded, frames = Reference(symbols, cell, charge), Counter(), []
    info = {"family": task["family"], "trajectory": task["name"], "temperature": temperature}

    def forces_at(y):
        force = reference.forces(y)
        return force if cell is not None else force + confinement(y, radius)

    v = thermal_velocities(masses, temperature, rng)
    equilibration = min(task["equilibration"], 15) if task["family"] == "large-box" else task["equilibration"]
    try:
        x, v, force = langevin(forces_at, x, v, masses, temperature, equilibration, rng, 0.05)
        for _ in range(task["frames"]):
            x, v, force = langevin(
                forces_at,
                x,
                v,
                masses,
                temperature,
                task["interval"],
                rng,
                friction,
                force=force,
                finish=lambda y: label_positions(y, symbols, cell),
            )
            try:
                frames.append(reference.frame(info, whole_water))
            except Discard as reason:
                discarded[str(reason)] += 1
    except Discard as reason:  # the dynamics itself cannot go on
        discarded[f"{reason} (ends its trajectory)"] += task["frames"] - len(frames) - sum(discarded.values())
    return frames, discarded
