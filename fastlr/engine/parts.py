"""One structure part by part, where the buffers for all of it at once would not fit into memory.

A part has some atoms that count, and around them all atoms that their energies depend on: those that L edges lead to,
with L layers. Each atom counts in one part, and derivatives are added up over the parts. Charges belong to the whole
structure, so that a model with charges goes over its parts three times: for the electronegativities, for the energies
at the charges that follow from these, and for the forces that act through the electronegativities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.graph import Graph
from fastlr.models.derivatives import finish
from fastlr.models.pieces import Pieces

from .charges import Charges, Equilibrated
from .edge_list import morton_order

if TYPE_CHECKING:
    from .plan import Plan


class TooLarge(Exception):
    """The smallest part there is does not fit.

    Attributes:
        part: its graph.
    """

    def __init__(self, part: Graph):
        super().__init__(part)
        self.part = part


class Part(NamedTuple):
    """Some atoms with their surroundings.

    Attributes:
        graph: see ``neighbourhood``.
        atoms: (n,) of the whole, in order.
        counted: (n,) float64, one for atoms that count and zero for those around them.
    """

    graph: Graph
    atoms: Tensor
    counted: Tensor


def evaluate_in_parts(
    plan: Plan | Pieces, graph: Graph, fits: Callable[[Graph], bool], *, forces: bool
) -> dict[str, Tensor]:
    """As ``Plan.evaluate`` of one structure.

    Args:
        plan: evaluates parts.
        fits: whether a part is small enough; parts are halved until they are.

    Raises:
        TooLarge: an atom with all that its energy depends on is too large a part.
        InputError: see ``Plan.evaluate``.
    """
    config, charged, depth = plan.config, plan.config.kind == "nequip-lr", plan.config.num_layers
    device = next(plan.model.parameters()).device
    parts = partial(_parts, graph, fits, device)
    whole = graph.to(device)
    out = {"atomic_energies": whole.positions.new_zeros(graph.num_nodes)}
    if forces:
        out |= {"forces": torch.zeros_like(whole.positions), "virial": torch.zeros_like(whole.cell)}
    if charged:
        equilibrated = _equilibrated(plan, whole, parts)
        by_charge = torch.zeros_like(equilibrated.charges)
        depth += config.num_charge_layers * config.reuse_features
    for part in parts(depth):
        charges = equilibrated.charges[part.atoms] if charged else None
        found = plan.energies_at(part.graph, charges, part.counted, forces=forces)
        out["atomic_energies"].index_add_(0, part.atoms, found["atomic_energies"] * part.counted)
        if forces:
            _add(out, found, part)
        if forces and charged:
            by_charge.index_add_(0, part.atoms, found["by_charge"])
    if charged:
        equilibrated.join(out)
    out["energy"] = whole.sum_nodes(out["atomic_energies"])
    if charged:
        out["energy"] += out["coulomb_energy"] + out["external_energy"]
    if forces and charged:
        by_position, by_strain, by_chi, out["by_potential"], out["potential"] = equilibrated.gradients(by_charge)
        out["forces"] -= by_position
        out["virial"] += by_strain
        for part in parts(config.num_charge_layers):
            _add(out, plan.pulls_at(part.graph, by_chi[part.atoms] * part.counted), part)
    return finish(whole, out)


def halved() -> Callable[[Graph], bool]:
    """What ``evaluate_in_parts`` takes as ``fits`` to split a structure into two parts each time."""
    calls = count()
    return lambda part: next(calls) % 3 > 0  # the whole, and then its halves


def _equilibrated(plan: Plan | Pieces, whole: Graph, parts: Callable[[int], Iterator[Part]]) -> Equilibrated:
    """The charges of the whole structure, from electronegativities found part by part."""
    chi = whole.positions.new_zeros(whole.num_nodes)
    for part in parts(plan.config.num_charge_layers):
        chi.index_add_(0, part.atoms, plan.electronegativities(part.graph) * part.counted)
    with torch.no_grad():
        return Charges(plan.model).of(whole, chi)


def _add(out: dict[str, Tensor], found: dict[str, Tensor], part: Part) -> None:
    out["forces"].index_add_(0, part.atoms, found["forces"])
    out["virial"] += found["virial"]


def _parts(graph: Graph, fits: Callable[[Graph], bool], device: torch.device, num_layers: int) -> Iterator[Part]:
    """Parts on a device in which each atom counts once: neighbours in space, so that few atoms are around them."""
    waiting = [morton_order(graph.positions, graph.batch).numpy()]
    while waiting:
        core = waiting.pop()
        part, atoms = neighbourhood(graph, core, num_layers)
        if fits(part):
            counted = torch.zeros(len(atoms), dtype=torch.float64)
            counted[np.searchsorted(atoms, core)] = 1.0
            yield Part(part.to(device), torch.from_numpy(atoms).to(device), counted.to(device))
        elif len(core) == 1:
            raise TooLarge(part)
        else:
            waiting += np.array_split(core, 2)


def neighbourhood(graph: Graph, core: np.ndarray, num_layers: int) -> tuple[Graph, np.ndarray]:
    """What the energies of the atoms ``core`` depend on, as a graph without reverse edges, and its atoms in order."""
    ptr, (_, source) = graph.row_ptr.numpy(), graph.edge_index.numpy()
    rows = np.sort(core)
    for _ in range(num_layers - 1):
        rows = np.union1d(rows, source[_entries(ptr, rows)])
    edges = _entries(ptr, rows)
    atoms = np.union1d(rows, source[edges])
    rank = np.full(graph.num_nodes, -1)
    rank[atoms] = np.arange(len(atoms))
    counts = np.zeros(len(atoms), np.int64)
    counts[rank[rows]] = ptr[rows + 1] - ptr[rows]
    own, kept = torch.from_numpy(atoms), torch.from_numpy(edges)
    part = Graph(
        positions=graph.positions[own],
        species=graph.species[own],
        batch=graph.batch[own],
        node_ptr=torch.tensor([0, len(atoms)]),
        cell=graph.cell,
        pbc=graph.pbc,
        charge=graph.charge,
        edge_index=torch.from_numpy(rank[graph.edge_index.numpy()[:, edges]]),
        edge_shift=graph.edge_shift[kept],
        row_ptr=torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
        reverse_edge=kept.new_empty(0),
    )
    return part, atoms


def _entries(ptr: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Numbers of the entries of some rows (CSR), row after row."""
    counts = ptr[rows + 1] - ptr[rows]
    before = np.concatenate([[0], counts.cumsum()])
    return np.arange(before[-1]) + np.repeat(ptr[rows] - before[:-1], counts)
