"""Structures at a given potential: the total charge is found, not given.

The charge Q of a structure solves dE/dQ = mu, where E is the energy that is returned, with all that depends on charges
in it. The forces at that charge are those of the grand energy E - mu Q at constant mu. Secant steps lead there, within
a bracket once there is one; along a path of configurations they start from the charge and the slope of the last one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from ase import Atoms
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.errors import InputError, StructureName
from fastlr.graph import Graph
from fastlr.nn.charge_equilibration import ChargeEquilibration

TOLERANCE = 1e-6  # eV/e
# What is left where rounding, of float32 in the network, lets dE/dQ fall no further
NOISE = {torch.float32: 2e-5, torch.float64: TOLERANCE}  # eV/e
MAX_EVALUATIONS = 40
# e an atom beyond which there is a warning: of any structure, and of one that has so many e in all
LARGEST_CHARGE, OF_MANY, MANY = 0.5, 0.05, 5.0
LIMIT = 2.0  # e an atom, beyond which there is no search


def warn_of_large_charges(graph: Graph, structures: Sequence[Atoms], start: int = 0) -> None:
    """Warn of total charges that were found and are larger than models have seen.

    Args:
        graph: with the charges; its structures are those from number ``start`` of ``structures``.
    """
    sizes = (graph.node_ptr[1:] - graph.node_ptr[:-1]).tolist()
    for b, (charge, size) in enumerate(zip(graph.charge.tolist(), sizes, strict=True)):
        largest = min(LARGEST_CHARGE * size, max(OF_MANY * size, MANY))
        if abs(charge) > largest:
            warnings.warn(
                f"{StructureName(structures[start + b], start + b)}: its chemical potential leads "
                f"to a total charge of {charge:+.4g} e on {size} atoms; models have hardly ever been trained on more "
                f"than {largest:.3g} e",
                stacklevel=2,
            )


def is_fixed(graph: Graph) -> bool:
    """Whether the potential of a structure is given."""
    return graph.conditions is not None and graph.conditions.has_potentials


def evaluate_at_potential(
    run: Callable[[Graph], dict[str, Tensor]], equilibration: ChargeEquilibration, graph: Graph
) -> tuple[dict[str, Tensor], Graph]:
    """Find the charges that given potentials bring.

    Args:
        run: evaluates a graph whose charges are given, with forces; as ``fastlr.models.derivatives.evaluate``.
        equilibration: of the model.
        graph: some of its structures have a chemical potential.

    Returns:
        the results, and the graph with the charges that were found.

    Raises:
        InputError: there is no such charge, or the energy has no minimum there; see also ``run``.
    """
    search = _Search(graph, equilibration)
    for number in range(MAX_EVALUATIONS):
        current = search.graph_at(search.charge)
        with _same_step(graph, number > 0):
            out = run(current)
        if search.is_done(out["potential"].detach().cpu()):
            search.remember()
            return out, current
    raise search.failure()


class _Search:
    """Charges (B,) on their way; structures whose potential is not given keep theirs."""

    def __init__(self, graph: Graph, equilibration: ChargeEquilibration):
        self.graph, conditions = graph, graph.conditions
        self.wanted = conditions.chemical_potential
        self.free = ~self.wanted.isnan() & (graph.node_ptr[1:] > graph.node_ptr[:-1])
        self.conditions = conditions.without_potentials()
        self.noise = NOISE[equilibration.operations.dtype]
        self.known = {} if graph.memory is None else graph.memory.totals
        self.charge, self.slope = torch.where(self.free, 0.0, graph.charge), self._stiffness(equilibration)
        for b, (charge, slope) in self.known.items():
            self.charge[b], self.slope[b] = charge, slope
        atoms = (graph.node_ptr[1:] - graph.node_ptr[:-1]).double()
        self.most, self.limit = 0.25 * atoms.clamp_min(4.0), LIMIT * atoms
        self.low, self.high = (torch.full_like(self.charge, sign * torch.inf) for sign in (-1.0, 1.0))
        self.before: tuple[Tensor, Tensor] | None = None
        self.best = torch.full_like(self.charge, torch.inf)

    def _stiffness(self, equilibration: ChargeEquilibration) -> Tensor:
        """(B,) d^2E/dQ^2 if atoms took up charge without feeling each other."""
        species = equilibration.widths.shape[0]
        own = COULOMB_CONSTANT / (equilibration.widths.clamp_min(0.1) * torch.pi**0.5)
        softness = (1.0 / (equilibration.hardness.detach() + own)).cpu()
        pairs = torch.bincount(self.graph.batch * species + self.graph.species, minlength=len(self.wanted) * species)
        return 1.0 / (pairs.view(-1, species).double() @ softness).clamp_min(1e-300)

    def graph_at(self, charge: Tensor) -> Graph:
        """The structures with given charges (B,)."""
        conditions = self.conditions
        if conditions is not None and conditions.fragment is not None:
            structure = self.graph.batch.new_zeros(len(conditions.fragment_charge))
            structure = structure.index_copy(0, conditions.fragment, self.graph.batch)
            sums = torch.where(self.free[structure], charge[structure], conditions.fragment_charge)
            conditions = replace(conditions, fragment_charge=sums)
        return replace(self.graph, charge=charge.clone(), conditions=conditions)

    def is_done(self, potential: Tensor) -> bool:
        """Whether potentials (B,) at the charges are as wanted; otherwise, take the next charges."""
        error = torch.where(self.free, potential - self.wanted, 0.0)
        if not bool(torch.isfinite(error).all()):
            raise self.failure(~torch.isfinite(error))
        self._learn(error)
        wide, out = error.abs() > TOLERANCE, self.charge.abs() >= self.limit
        if bool((wide & out).any()):
            raise self.failure(wide & out)
        # no further progress: the bracket is as narrow as charges can be told apart
        stalled = (error.abs() <= self.noise) & (error.abs() >= 0.5 * self.best)
        self.best = torch.minimum(self.best, error.abs())
        open_ = wide & ~stalled
        if not bool(open_.any()):
            unstable = self.free & (self.slope <= 0.0)
            if bool(unstable.any()):
                raise self.failure(unstable)
            return True
        self.before = self.charge, error
        self.charge = torch.where(open_, self._next(error), self.charge)
        return False

    def _learn(self, error: Tensor) -> None:
        """Slope and bracket from an error (B,) of dE/dQ."""
        self.error = error
        self.low = torch.where(error < 0.0, torch.maximum(self.low, self.charge), self.low)
        self.high = torch.where(error > 0.0, torch.minimum(self.high, self.charge), self.high)
        if self.before is not None:
            charge, last = self.before
            moved = (self.charge - charge).abs() > 1e-9
            slope = (error - last) / torch.where(moved, self.charge - charge, 1.0)
            self.slope = torch.where(moved & ((error - last).abs() > 4.0 * self.noise), slope, self.slope)

    def _next(self, error: Tensor) -> Tensor:
        """Charges after a secant step, or in the middle of the bracket where that leads out of it."""
        step = torch.where(self.slope > 0.0, -error / self.slope, -error.sign() * self.most)
        charge = (self.charge + step.clamp(-self.most, self.most)).clamp(-self.limit, self.limit)
        bracketed = torch.isfinite(self.low) & torch.isfinite(self.high) & (self.low < self.high)
        outside = bracketed & ((charge <= self.low) | (charge >= self.high))
        return torch.where(outside, 0.5 * (self.low + self.high).nan_to_num(), charge)

    def remember(self) -> None:
        """For the next step of a path."""
        for b in torch.nonzero(self.free)[:, 0].tolist():
            self.known[b] = float(self.charge[b]), float(self.slope[b])

    def failure(self, where: Tensor | None = None) -> InputError:
        """The error that names the first structure in question and says why there is no charge for it."""
        where = self.free & (self.error.abs() > TOLERANCE) if where is None else where
        b = int(torch.nonzero(where)[0])
        charge, slope = float(self.charge[b]), float(self.slope[b])
        if not bool(torch.isfinite(self.error[b])):
            reason = f"dE/dQ is not finite at Q = {charge:.4g} e"
        elif slope <= 0.0:
            reason = f"its energy has no minimum there, for d^2E/dQ^2 is {slope:.2g} eV/e^2 near Q = {charge:.4g} e"
            slab = int(self.graph.pbc[b].sum()) == 2
            reason += ", as nothing compensates the charge of a slab; give its charge" if slab else ""
        else:
            reason = f"no total charge within {LIMIT:g} e an atom has it; at Q = {charge:.4g} e it is "
            reason += f"{float(self.wanted[b] + self.error[b]):.4g} eV/e"
        return InputError(
            f"structure {b} of the batch: the chemical potential of {float(self.wanted[b]):g} eV/e cannot be held: "
            + reason
        )


def _same_step(graph: Graph, again: bool):
    """Solutions replace those of this step, instead of being taken for the next one's."""
    return graph.memory.same_step() if again and graph.memory is not None else nullcontext()
