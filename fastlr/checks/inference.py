"""Whole models: an executor beside the float64 reference, on a small box with all elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from fastlr.errors import BackendError, CheckpointError, InputError
from fastlr.graph import CoulombSettings, Graph
from fastlr.memory import Counts, MemoryModel, available_bytes
from fastlr.models.derivatives import evaluate
from fastlr.models.reference import reference_of

from .stored import fingerprint, stored

# Largest accepted differences: an atom's share of the energy in eV, a component of a force in eV/Å and of the virial in
# eV. Where atomic energies, forces or virials are larger than one, relative to the largest.
TOLERANCE = {torch.float32: (1e-6, 1e-5, 3e-4), torch.float64: (1e-10, 1e-10, 3e-9)}
NUM_ATOMS = 27  # of the box, about
LARGE = 1e9  # weights that may make numbers overflow; those of trained models are about one
REACH = 3.6  # spacings of the box, at most, in which an atom has neighbours
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


def box(species: list[str], r_max: float, num_atoms: int, widest: float = 0.0) -> Atoms:
    """A periodic box with all elements on a rattled cubic grid of about so many atoms, about as dense as a liquid, or
    such that an atom has two hundred neighbours at most, and not too dense for Gaussian charges of width ``widest``."""
    per_axis = max(1, round(max(num_atoms, len(species)) ** (1 / 3) + 0.2))
    spacing = max(min(2.6, 0.6 * r_max), r_max / REACH, min(0.9 * r_max, 0.5 * widest))
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
    atoms, charge = _probe(config, settings)
    # how the Coulomb sum is split changes nothing, but a width that was chosen for other cells may take long here
    settings, inference = (given and replace(given, eta=None) for given in (settings, inference))
    graph = Graph.from_atoms(atoms, config.species, config.r_max, inference, charge)
    expected, found = _expected(model, atoms, settings, charge), run(graph)
    check = InferenceCheck(
        len(atoms),
        float((found["energy"].cpu() - expected["energy"]).abs()) / len(atoms),
        *(float((found[key].cpu() - expected[key]).abs().max()) for key in ("forces", "virial")),
    )
    if not _are_finite(expected):
        return check  # such a model gives no finite number to compare with; predictions will say so
    allowed = [
        limit * max(1.0, float(expected[key].abs().max()))
        for limit, key in zip(TOLERANCE[config.torch_dtype], RESULTS[1:], strict=True)
    ]
    errors = check.energy, check.forces, check.virial
    if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):
        if config.torch_dtype == torch.float32 and not _are_finite(found):
            raise BackendError(
                "the inference plan gives numbers that are not finite where the float64 reference gives finite ones: "
                "the model's weights are too large for float32; load it with dtype='float64'"
            )
        raise BackendError(
            f"the inference plan fails the parity check: {check}, max |dV| {check.virial:.1e} eV (allowed: "
            f"{allowed[0]:.0e}, {allowed[1]:.0e} and {allowed[2]:.0e}); choose backend='reference', and please report "
            "this"
        )
    return check


def require_sense(model: torch.nn.Module, settings: CoulombSettings | None, path) -> None:
    """Make sure that the weights of a model file are those of a potential, on the same box.

    Args:
        model: with the weights of the file, on the reference kernels.
        settings: of its Coulomb sum.
        path: of the file.

    Raises:
        CheckpointError: energies or forces are not finite, or there are no forces at all.
    """
    atoms, charge = _probe(model.config, settings)
    where = f"on a small box with {', '.join(shortened_list(model.config.species))}"
    settings = settings and replace(settings, eta=None)
    try:
        found = _expected(model, atoms, settings, charge)
        is_finite = _are_finite(found)
        if is_finite and max(float(weight.abs().max()) for weight in model.state_dict().values()) > LARGE:
            graph = Graph.from_atoms(atoms, model.config.species, model.config.r_max, settings, charge)
            if not _are_finite(evaluate(model, graph)):
                name = str(model.config.torch_dtype).removeprefix("torch.")
                raise CheckpointError(f"{path}: its weights are too large for {name}, in which numbers become infinite")
    except InputError as error:  # the charges have no solution, or there is too little memory
        raise CheckpointError(f"{path}: its weights cannot be tried {where}: {error}") from None
    if not is_finite:
        raise CheckpointError(f"{path}: its weights give energies or forces that are not finite {where}")
    if not found["forces"].any():
        zero = [name for name, tensor in model.state_dict().items() if not tensor.any()]
        told = f": all numbers are zero in {', '.join(shortened_list(zero))}" if zero else ""
        raise CheckpointError(f"{path}: its weights give no forces at all {where}{told}")


def shortened_list(names: list[str]) -> list[str]:
    """The first few."""
    return [*names[:4], "..."] if len(names) > 5 else names


def _are_finite(results: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(results[key]).all()) for key in RESULTS)


def _probe(config, settings: CoulombSettings | None) -> tuple[Atoms, float | None]:
    """The box, and its total charge."""
    if settings is None:
        return box(config.species, config.r_max, NUM_ATOMS), None
    return box(config.species, config.r_max, NUM_ATOMS, max(settings.widths)), 1.0


def _require_memory(model, graph: Graph) -> None:
    needed = MemoryModel.of_autograd(model, dense=True).bytes_of(Counts.of(graph))
    free = available_bytes(torch.device("cpu"))
    if 2 * needed > 1.2 * free:  # of float64, whatever the model is
        raise InputError(
            f"to compare it with the reference takes about {2 * needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB of "
            "memory are free"
        )


def _expected(model, atoms: Atoms, settings: CoulombSettings | None, charge: float | None) -> dict[str, Tensor]:
    """Results of the reference, from disk if they were computed before."""

    def compute() -> dict[str, Tensor]:
        config = model.config
        graph = Graph.from_atoms(atoms, config.species, config.r_max, settings, charge)
        _require_memory(model, graph)
        found = evaluate(reference_of(model), graph)
        return {key: found[key] for key in RESULTS}

    return stored("reference", f"box {fingerprint(model)} {settings}", compute)
