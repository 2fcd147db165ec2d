"""Frames of pure NaCl, for the family of cells with ions."""

from collections import Counter

import numpy as np

from .compositions import pick, pick_temperature
from .labels import Discard, Reference, label_positions
from .liquid import ClassicalLiquid
from .packing import random_cell


def salt_trajectory(task, rng):
    """Single points of crystalline (even index) or molten-like (odd index) NaCl moved by the classical model.

    The cell has 64 atoms: with the Gamma point alone, 8 atoms are off by 80 meV per atom, 64 by about 1 meV.
    """
    from ase.build import bulk

    molten = task["index"] % 2 == 1
    pick_temperature(rng, periodic=True)  # not used, but drawn as for the other cells: a seed keeps its frames
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    ions = crystal.get_chemical_symbols()
    temperature = int(pick(rng, [1100, 1400] if molten else [300, 500, 800]))
    if molten:
        liquid = ClassicalLiquid(ions, random_cell(crystal.get_volume() * rng.uniform(1.1, 1.4), rng), rng, temperature)
    else:
        liquid = ClassicalLiquid(ions, crystal.cell[:], rng, temperature)
        liquid.x = crystal.positions
    liquid.advance(300)
    reference, frames, discarded = Reference(ions, liquid.cell, 0), [], Counter()
    info = {"family": task["family"], "trajectory": task["name"], "temperature": temperature}
    for _ in range(task["frames"]):
        scale = rng.uniform(0.95, 1.06)
        cell = np.round(liquid.cell * scale, 5)
        try:
            reference.forces(label_positions(liquid.advance(100) * scale, ions, cell), cell)
            frames.append(reference.frame(info))
        except Discard as reason:
            discarded[str(reason)] += 1
    return frames, discarded
