"""Proof that a plan computes what the model means, measured when it is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from fastlr.backends import resolve
from fastlr.errors import BackendError
from fastlr.graph import CoulombSettings, Graph
from fastlr.models import build_model
from fastlr.models.derivatives import evaluate

# Largest accepted differences: an atom's share of the energy in eV, and a component of a force in eV/Å. Where energies
# or forces are larger than one, relative to the largest.
TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.float64: (1e-10, 1e-10)}


PROBE = 27  # atoms


@dataclass(frozen=True)
class Proof:
    """How far a plan is from the float64 reference on a probe.

    Attributes:
        num_atoms: of the probe.
        energy: |dE| an atom, eV.
        forces: largest |dF|, eV/Å.
    """

    num_atoms: int
    energy: float
    forces: float

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


def prove(plan, model: torch.nn.Module, settings: CoulombSettings | None, inference: CoulombSettings | None) -> Proof:
    """Compare a plan with the reference.

    Args:
        plan: evaluates graphs.
        model: whose weights the plan was made from.
        settings, inference: of the Coulomb sum, as the model has them and as the plan is used; None without charges.

    Raises:
        BackendError: they differ by more than ``TOLERANCE``.
    """
    config, dtype = model.config, model.config.torch_dtype
    atoms = box(config.species, config.r_max, PROBE)
    charge = None if settings is None else 1.0
    graph, own = (Graph.from_atoms(atoms, config.species, config.r_max, each, charge) for each in (settings, inference))
    exact = build_model(
        config.model_copy(update={"dtype": "float64"}), resolve("reference", "cpu", torch.float64)
    ).requires_grad_(False)
    exact.load_state_dict({key: value.to(exact.state_dict()[key].dtype) for key, value in model.state_dict().items()})
    expected, found = evaluate(exact.eval(), graph), plan.evaluate(own)
    energies, forces = expected["atomic_energies"], expected["forces"]
    energy_error = float((found["energy"] - expected["energy"]).abs()) / len(atoms)
    force_error = float((found["forces"] - forces).abs().max())
    proof = Proof(len(atoms), energy_error, force_error)
    if not bool(torch.isfinite(expected["energy"]).all() and torch.isfinite(forces).all()):
        return proof  # such a model gives no finite number to compare with; predictions will say so
    allowed = [
        limit * max(1.0, float(values.abs().max()))
        for limit, values in zip(TOLERANCE[dtype], (energies, forces), strict=True)
    ]
    if not (energy_error <= allowed[0] and force_error <= allowed[1]):
        raise BackendError(
            f"the inference plan fails the parity check: {proof} (allowed: {allowed[0]:.0e} and {allowed[1]:.0e}); "
            "choose backend='reference', and please report this"
        )
    return proof
