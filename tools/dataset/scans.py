"""Frames of two molecules pulled apart, for the family of scaled structures."""

from collections import Counter

import numpy as np

from .classical import ATOM_CHARGES
from .compositions import pick
from .labels import Discard, Reference, label_positions
from .molecules import MOLECULES, symbols_of, total_charge
from .packing import random_rotation

# Pairs pulled apart: the two molecules and the shortest distance (Å) between their first atoms.
SCANS = [
    (("Na", "Cl"), 2.0),
    (("Na", "H2O"), 1.9),
    (("Cl", "H2O"), 2.6),
    (("H2O", "H2O"), 2.3),
    (("H3O", "H2O"), 2.3),
    (("OH", "H2O"), 2.3),
    (("H3O", "Cl"), 2.5),
    (("Na", "OH"), 1.9),
    (("H2O", "H2O"), 2.3),
    (("Na", "Na"), 2.4),
    (("Cl", "Cl"), 2.8),
]


def scan_trajectory(task, rng):
    """A pair of molecules from close contact to about 8 Å."""
    molecules, closest = SCANS[task["index"] % len(SCANS)]
    symbols = symbols_of(molecules)
    charge = total_charge(molecules)
    shapes = [np.array(MOLECULES[name][1], dtype=float) for name in molecules]
    q1, q2 = (np.array(ATOM_CHARGES[name]) for name in molecules)

    def repulsion(pair, distance):  # electrostatic energy of the point charges, in e2/Å
        r = np.linalg.norm(pair[0][:, None, :] - (pair[1] + [distance, 0, 0])[None, :, :], axis=2)
        return (np.outer(q1, q2) / r).sum()

    # The best of several random orientations: sometimes the first one, else near the attractive one.
    trials = [[s @ random_rotation(rng).T for s in shapes] for _ in range(int(pick(rng, [1, 30, 200])))]
    pair = min(trials, key=lambda trial: repulsion(trial, 4.0))
    reference, frames, discarded = Reference(symbols, None, charge), [], Counter()
    info = {"family": task["family"], "trajectory": task["name"], "temperature": 0}
    count = task["frames"]
    for k in range(count):
        distance = closest * (rng.uniform(7.5, 8.5) / closest) ** (k / max(count - 1, 1))
        x = np.concatenate([pair[0], pair[1] + [distance, 0, 0]]) @ random_rotation(rng).T
        x = x + rng.normal(scale=0.02, size=x.shape)
        try:
            reference.forces(label_positions(x, symbols, None))
            frames.append(reference.frame(info))
        except Discard as reason:
            discarded[str(reason)] += 1
    return frames, discarded
