"""Proof that a model taken over from another package computes what it did there.

What an importer does not know of a model it cannot refuse by name. Therefore the source is evaluated beside the copy on
structures that ask for everything a model depends on: each species alone, pairs at distances from short to beyond the
cutoff, molecules and skewed cells smaller than the cutoff with all species.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from fastlr.errors import ConfigError
from fastlr.graph import Graph
from fastlr.models.derivatives import evaluate
from fastlr.models.reference import reference_of

DISTANCES = (0.12, 0.25, 0.4, 0.6, 0.8, 0.95, 1.02)  # of pairs, in units of the cutoff
GROUP = 6  # species in one molecule or cell

# Largest accepted relative differences, by the float type that the source's weights and constants were rounded to.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class Evaluation(NamedTuple):
    """What a package says of one structure.

    Attributes:
        energy: eV.
        forces: (n, 3) eV/Å.
        stress: (3, 3) eV/Å^3, tension positive; None where there is none.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None = None


def probes(species: list[str], r_max: float) -> dict[str, Atoms]:
    """Structures to compare on, by name; the atoms alone come first, in the order of ``species``."""
    rng = np.random.default_rng(0)
    found = {f"one atom of {symbol}": Atoms(symbol, [[0.1, 0.2, 0.3]]) for symbol in species}
    direction = np.array([0.36, -0.48, 0.8])
    for k, distance in enumerate(DISTANCES):
        pair = [species[k % len(species)], species[(k + 1 + k // len(species)) % len(species)]]
        atoms = Atoms(pair, [[0.0] * 3, distance * r_max * direction])
        found[f"a pair {'-'.join(pair)} at {distance * r_max:.3g} Å"] = atoms
    for start in range(0, len(species), GROUP):
        group = species[start : start + GROUP]
        name = f"with {' '.join(group)}"
        found[f"a molecule {name}"] = Atoms(_symbols(group, 12), _rattled((3, 2, 2), 0.33 * r_max, rng))
        cell = 0.42 * r_max * 2 * (np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3)))
        atoms = Atoms(_symbols(group, 8), _rattled((2, 2, 2), 0.42 * r_max, rng), cell=cell, pbc=True)
        found[f"a cell {name}"] = atoms
    return found


def _symbols(group: list[str], count: int) -> list[str]:
    return [group[k % len(group)] for k in range(count)]


def _rattled(shape: tuple[int, int, int], spacing: float, rng) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return spacing * (grid + rng.uniform(-0.15, 0.15, grid.shape))


def require_agreement(
    source: Callable[[Atoms], Evaluation],
    model: torch.nn.Module,
    package: str,
    tolerance: float,
    rounding: float = torch.finfo(torch.float64).eps,
) -> None:
    """Refuse a model that differs from the one it was taken from.

    Energies are compared less those of the atoms alone, which would hide errors of the network; relative to their size
    and that of the forces (times 1 Å), forces relative to their size, virials relative to both.

    Args:
        source: evaluates the model that was taken over.
        model: one of ``fastlr.models``; it is compared in float64 on the reference kernels.
        package: what errors call the source.
        tolerance: largest relative difference; see ``TOLERANCE``.
        rounding: of the source's total energies, relative.

    Raises:
        ConfigError: they differ; the message names the structure and the differences.
    """
    config = model.config
    structures = probes(config.species, config.r_max)
    ours = _evaluations(model, list(structures.values()))
    alone = {}  # energies (theirs, ours) by species
    for k, (name, atoms) in enumerate(structures.items()):
        theirs = source(atoms)
        if not np.isfinite(theirs.energy) or not np.isfinite(theirs.forces).all():
            raise ConfigError(f"the {package} model's energy or a force is not finite for {name}: it cannot be compared")
        if len(atoms) == 1:
            alone[atoms.symbols[0]] = theirs.energy, ours[k].energy
            offsets = 0.0, 0.0
        else:
            offsets = np.sum([alone[symbol] for symbol in atoms.symbols], axis=0)
        differences = _differences(theirs, ours[k], offsets, atoms, rounding)
        worst = max(differences.values())
        if not worst <= tolerance:
            told = ", ".join(f"{what} by {value:.1e}" for what, value in differences.items())
            raise ConfigError(
                f"the model differs from the {package} model that it was taken from, for {name} (relative): {told}; "
                f"it has a part that fastlr does not know"
            )


def _evaluations(model: torch.nn.Module, structures: list[Atoms]) -> list[Evaluation]:
    graph = Graph.from_atoms(structures, model.config.species, model.config.r_max)
    out = {key: value.numpy() for key, value in evaluate(reference_of(model), graph).items()}
    ptr = graph.node_ptr.tolist()
    return [
        Evaluation(float(out["energy"][b]), out["forces"][ptr[b] : ptr[b + 1]], out["stress"][b])
        for b in range(len(structures))
    ]


def _differences(theirs: Evaluation, ours: Evaluation, offsets, atoms: Atoms, rounding: float) -> dict[str, float]:
    """Relative differences of energy, forces and stress; what rounding leaves counts as none."""
    forces = np.linalg.norm(theirs.forces)
    totals = theirs.energy, ours.energy
    energies = [total - offset for total, offset in zip(totals, offsets, strict=True)]
    slack = 8.0 * rounding
    found = {
        "energy": _relative(energies[1] - energies[0], abs(energies[0]) + forces, slack * max(1.0, *map(abs, totals))),
        "forces": _relative(np.linalg.norm(ours.forces - theirs.forces), forces, slack),
    }
    if theirs.stress is not None and atoms.pbc.all():
        virial = np.linalg.norm(theirs.stress) * atoms.get_volume()
        difference = np.linalg.norm(ours.stress - theirs.stress) * atoms.get_volume()
        found["stress"] = _relative(difference, virial + forces, slack)
    return found


def _relative(difference: float, scale: float, slack: float) -> float:
    return max(abs(difference) - slack, 0.0) / scale if scale > 0.0 else float(abs(difference) > slack)
