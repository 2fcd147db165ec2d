"""Proof that a model taken over from another package computes what it did there.

What an importer does not know of a model it cannot refuse by name. Therefore the source is evaluated beside the copy on
structures that ask for everything a model depends on: each species alone, pairs at distances from short to beyond the
cutoff, a skewed cell smaller than the cutoff, molecules with all species.
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
    cell = 0.84 * r_max * (np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3)))
    atoms = Atoms(_symbols(species, 8), _rattled((2, 2, 2), 0.42 * r_max, rng), cell=cell, pbc=True)
    found[f"a cell of {atoms.symbols}"] = atoms
    for start in range(0, len(species), 12):
        atoms = Atoms(_symbols(species[start:], 12), _rattled((6, 2, 1), 0.33 * r_max, rng))
        found[f"a molecule of {atoms.symbols}"] = atoms
    return found


def _symbols(species: list[str], count: int) -> list[str]:
    return [species[k % len(species)] for k in range(count)]


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
    reference = reference_of(model)
    alone = {}  # energies (theirs, ours) by species
    for name, atoms in probes(config.species, config.r_max).items():
        theirs, ours = source(atoms), _evaluate(reference, atoms)
        if not np.isfinite(theirs.energy) or not np.isfinite(theirs.forces).all():
            raise ConfigError(f"the {package} model's energy or forces for {name} are not finite, so nothing is proven")
        if len(atoms) == 1:
            alone[atoms.symbols[0]] = theirs.energy, ours.energy
            offsets = 0.0, 0.0
        else:
            offsets = np.sum([alone[symbol] for symbol in atoms.symbols], axis=0)
        differences = _differences(theirs, ours, offsets, atoms, rounding)
        if not all(value <= tolerance for value in differences.values()):
            told = ", ".join(f"{what} by {value:.1e}" for what, value in differences.items())
            raise ConfigError(
                f"the model differs from the {package} model that it was taken from, for {name} (relative): {told}; "
                "it has a part that fastlr does not know"
            )


def _evaluate(reference: torch.nn.Module, atoms: Atoms) -> Evaluation:
    out = evaluate(reference, Graph.from_atoms(atoms, reference.config.species, reference.config.r_max))
    return Evaluation(out["energy"].item(), out["forces"].numpy(), out["stress"][0].numpy())


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
    excess = abs(difference) - slack
    if excess <= 0.0:
        return 0.0
    return excess / scale if scale > 0.0 else np.inf
