"""Whole models: an executor beside the float64 reference, on a small box with all elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from fastlr.errors import BackendError
from fastlr.graph import CoulombSettings, Graph
from fastlr.models.derivatives import evaluate
from fastlr.models.reference import reference_of

from .stored import fingerprint, stored

# Largest accepted differences: an atom's share of the energy in eV, a component of a force in eV/Å and of the virial in
# eV. Where atomic energies, forces or virials are larger than one, relative to the largest.
TOLERANCE = {torch.float32: (1e-6, 1e-5, 3e-4), torch.float64: (1e-10, 1e-10, 3e-9)}
NUM_ATOMS = 27  # of the box, about
RESULTS = "energy", "atomic_energies", "forces", "virial"


@dataclass(frozen=True)
class InferenceCheck:
    """How far an executor is from the float64 reference on a box.

    Attributes:
        num_atoms: in the box.
        energy: |dE| an atom, eV.
        forces: largest |dF|, eV/Å.
        virial: largest |dV| of a component, eV.
    """

    num_atoms: int
    energy: float
    forces: float
    virial: float

    def __str__(self) -> str:
        return (
            f"max |dE| {self.energy:.1e} eV/atom, max |dF| {self.forces:.1e} eV/Å against the float64 reference on "
            f"{self.num_atoms} atoms"
        )


def box(species: list[str], r_max: float, num_atoms: int) -> Atoms:
    """A periodic box with all elements on a rattled cubic grid of about so many atoms, about as dense as a liquid."""
    per_axis = max(1, round(max(num_atoms, len(species)) ** (1 / 3) + 0.2))
    spacing = min(2.6, 0.6 * r_max)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(per_axis)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = spacing * (grid + rng.uniform(-0.12, 0.12, grid.shape))
    symbols = [species[k % len(species)] for k in range(len(grid))]
    return Atoms(symbols, positions, cell=[spacing * per_axis] * 3, pbc=True)


def check_inference(
    run: Callable[[Graph], dict[str, Tensor]],
    model: torch.nn.Module,
    settings: CoulombSettings | None,
    inference: CoulombSettings | None,
) -> InferenceCheck:
    """Compare an executor with the reference.

    Args:
        run: evaluates a graph, as ``fastlr.models.derivatives.evaluate`` does.
        model: whose weights the executor was made from.
        settings, inference: of the Coulomb sum, as the model has them and as the executor is used; None without
            charges.

    Raises:
        BackendError: they differ by more than ``TOLERANCE``.
    """
    config = model.config
    atoms = box(config.species, config.r_max, NUM_ATOMS)
    charge = None if settings is None else 1.0
    graph = Graph.from_atoms(atoms, config.species, config.r_max, inference, charge)
    expected, found = _expected(model, atoms, settings, charge), run(graph)
    check = InferenceCheck(
        len(atoms),
        float((found["energy"].cpu() - expected["energy"]).abs()) / len(atoms),
        *(float((found[key].cpu() - expected[key]).abs().max()) for key in ("forces", "virial")),
    )
    if not all(bool(torch.isfinite(expected[key]).all()) for key in RESULTS):
        return check  # such a model gives no finite number to compare with; predictions will say so
    allowed = [
        limit * max(1.0, float(expected[key].abs().max()))
        for limit, key in zip(TOLERANCE[config.torch_dtype], RESULTS[1:], strict=True)
    ]
    errors = check.energy, check.forces, check.virial
    if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):
        raise BackendError(
            f"the inference plan fails the parity check: {check}, max |dV| {check.virial:.1e} eV (allowed: "
            f"{allowed[0]:.0e}, {allowed[1]:.0e} and {allowed[2]:.0e}); choose backend='reference', and please report "
            "this"
        )
    return check


def _expected(model, atoms: Atoms, settings: CoulombSettings | None, charge: float | None) -> dict[str, Tensor]:
    """Results of the reference, from disk if they were computed before."""

    def compute() -> dict[str, Tensor]:
        config = model.config
        graph = Graph.from_atoms(atoms, config.species, config.r_max, settings, charge)
        found = evaluate(reference_of(model), graph)
        return {key: found[key] for key in RESULTS}

    return stored("reference", f"box {fingerprint(model)} {settings}", compute)
