"""Frames of classical structures scaled, strained and rattled, for the family of scaled ones."""

import math
from collections import Counter

import numpy as np

from .compositions import box_molecules, cluster_molecules, pick_temperature
from .labels import Discard, Reference, label_positions
from .liquid import ClassicalLiquid
from .molecules import symbols_of, total_charge
from .packing import density_cell

# The strata whose compositions are taken, in turn.
CLUSTERS = ("water-cluster", "ion-cluster", "proton-cluster")
CELLS = ("water-box", "ion-box-solution", "proton-box")


def distorted_trajectory(task, rng):
    """Single points of classical structures, scaled, strained and rattled."""
    periodic = task["stratum"] == "scaled-cell"
    kind = (CELLS if periodic else CLUSTERS)[task["index"] % 3]
    if periodic:
        molecules, density = box_molecules(kind, rng)
        cell = density_cell(molecules, density, rng)
    else:
        molecules, cell = cluster_molecules(kind, rng), None
    temperature = pick_temperature(rng, periodic)
    liquid = ClassicalLiquid(molecules, cell, rng, 500.0)
    liquid.advance(600)
    symbols = symbols_of(molecules)
    charge = total_charge(molecules)
    info = {"family": task["family"], "trajectory": task["name"], "temperature": temperature}
    reference, frames, discarded = Reference(symbols, cell, charge), [], Counter()
    for _ in range(task["frames"]):
        x = liquid.advance(200, temperature)
        deform = np.eye(3) * rng.uniform(0.92, 1.10)
        if rng.uniform() < 0.5:
            strain = rng.normal(scale=0.03, size=(3, 3))
            deform = deform @ (np.eye(3) + (strain + strain.T) / 2)
        if rng.uniform() < 0.5:  # all distances
            y = x @ deform
        else:  # only the distances between molecules
            owner = liquid.model.owner
            first = np.array([np.flatnonzero(owner == number)[0] for number in owner])
            y = x[first] @ deform + (x - x[first])
        y = y + rng.normal(scale=rng.uniform(0.02, 0.12) / math.sqrt(3), size=y.shape)
        new_cell = None if cell is None else np.round(cell @ deform, 5)
        try:
            reference.forces(label_positions(y, symbols, cell), new_cell)
            frames.append(reference.frame(info))
        except Discard as reason:
            discarded[str(reason)] += 1
    return frames, discarded
