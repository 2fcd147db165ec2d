"""Tiny data sets labelled by a random model: what a model of the same kind can learn."""

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from fastlr.models import build_model, parse_config
from fastlr.potential import Potential

MODEL = {"kind": "nequip-lr", "r_max": 3.5, "l_max": 1, "num_features": 4, "radial_width": 8}


def teacher() -> Potential:
    torch.manual_seed(3)
    config = {
        **MODEL,
        "species": ["H", "O"],
        "dtype": "float64",
        "avg_num_neighbors": 8.0,
        "energy_shifts": {"H": -13.0, "O": -430.0},
        "electronegativity_shifts": {"H": 0.0, "O": 6.0},
    }
    return Potential(build_model(parse_config(config)), backend="reference", device="cpu")


def frames(count: int, seed: int = 0) -> list[Atoms]:
    """Molecules and cells in turn, of differing size and composition; molecules have dipoles, cells stresses."""
    rng, model, found = np.random.default_rng(seed), teacher(), []
    for k in range(count):
        numbers = [8, 1, 1, 8, 1, 1, 8][: 4 + k % 4]
        grid = np.array([[x, y, z] for x in range(2) for y in range(2) for z in range(2)])[: len(numbers)] * 1.7
        cell = {"cell": [3.4, 3.4, 3.6], "pbc": True} if k % 2 else {}
        atoms = Atoms(numbers, positions=grid + rng.normal(0.0, 0.1, grid.shape), **cell)
        atoms.info["charge"] = 0 if k % 3 else 1
        atoms.info["family"] = "cell" if k % 2 else "molecule"
        label(atoms, model)
        found.append(atoms)
    return found


def label(atoms: Atoms, model: Potential) -> None:
    p = model.predict(atoms)
    results = {"energy": p.energy, "forces": p.forces, "charges": p.charges}
    if atoms.pbc.all():
        results["stress"] = p.stress.flatten()[[0, 4, 8, 5, 2, 1]]
    else:
        results["dipole"] = p.dipole
    atoms.calc = SinglePointCalculator(atoms, **results)


def write_run(directory, train=12, **training) -> dict:
    """Data files in ``directory`` and a configuration for them."""
    for name, count, seed in (("train", train, 0), ("validation", 4, 1), ("test", 4, 2)):
        ase.io.write(directory / f"{name}.extxyz", frames(count, seed))
    return {
        "model": {**MODEL, "electronegativity_shifts": "auto"},
        "data": {name: str(directory / f"{name}.extxyz") for name in ("train", "validation", "test")},
        "loss": {"energy": 1.0, "forces": 1.0, "stress": 10.0, "charges": 1.0, "dipole": 0.1},
        "training": {"batch_size": 4, "max_epochs": 2, "warmup_steps": 2, "schedule": "plateau", **training},
    }
