"""Frames in which one molecule is pushed against another: the repulsive walls, seen from every side."""

from collections import Counter

import numpy as np

from .compositions import box_molecules, cluster_molecules, pick_temperature
from .labels import Discard, Reference, label_positions
from .liquid import ClassicalLiquid
from .molecules import symbols_of, total_charge
from .packing import density_cell, random_rotation

# Atoms of two molecules touch at the sum of these (Å); frames go down to less than half of that.
CONTACT_RADIUS = {"H": 0.9, "O": 1.2, "Na": 1.4, "Cl": 1.6}
CLOSEST, WIDEST = 0.45, 0.95

CLUSTERS = ("ion-cluster", "water-cluster", "proton-cluster", "ion-cluster")
CELLS = ("ion-box-small", "water-box-small", "proton-box-small", "ion-box-small")


def contact_trajectory(task, rng):
    """Single points of classical structures in which one molecule was turned at random and pushed at another."""
    periodic = task["stratum"] == "contact-cell"
    kind = (CELLS if periodic else CLUSTERS)[task["index"] % 4]
    if periodic:
        molecules, density = box_molecules(kind, rng)
        cell = density_cell(molecules, density, rng)
    else:
        molecules, cell = cluster_molecules(kind, rng)[:6], None
        if len(molecules) == 1:
            molecules = [*molecules, "H2O"]
    temperature = pick_temperature(rng, periodic)
    liquid = ClassicalLiquid(molecules, cell, rng, 500.0)
    liquid.advance(600)
    symbols, owner = symbols_of(molecules), liquid.model.owner
    radii = np.array([CONTACT_RADIUS[symbol] for symbol in symbols])
    reference, frames, discarded = Reference(symbols, cell, total_charge(molecules)), [], Counter()
    info = {"family": task["family"], "trajectory": task["name"], "temperature": temperature}
    for _ in range(task["frames"]):
        x = push(liquid.advance(100, temperature), owner, radii, cell, rng)
        try:
            reference.forces(label_positions(x, symbols, cell))
            frames.append(reference.frame(info))
        except Discard as reason:
            discarded[str(reason)] += 1
    return frames, discarded


def push(x, owner, radii, cell, rng):
    """Turn one molecule at random and slide it towards another until their closest atoms touch as wanted."""
    mover, target = rng.choice(owner.max() + 1, size=2, replace=False)
    moving = owner == mover
    centre = x[moving][0]
    turned = x.copy()
    turned[moving] = (x[moving] - centre) @ random_rotation(rng).T + centre
    towards = nearest(x[owner == target][0] - centre, cell)
    touching = radii[moving][:, None] + radii[~moving][None, :]
    wanted = rng.uniform(CLOSEST, WIDEST)
    for fraction in np.linspace(0.0, 1.0, 400):
        shifted = turned[moving] + fraction * towards
        apart = np.linalg.norm(nearest(shifted[:, None] - turned[~moving][None], cell), axis=2)
        if (apart / touching).min() <= wanted:
            break
    turned[moving] = shifted
    return turned


def nearest(vectors, cell):
    """Vectors to the nearest image (well enough for the short ones that matter here)."""
    if cell is None:
        return vectors
    return vectors - np.round(vectors @ np.linalg.inv(cell)) @ cell
