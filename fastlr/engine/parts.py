"""One structure part by part, where the buffers for all of it at once would not fit into memory.

A part has some atoms whose energies count, and around them all atoms that these energies depend on: those that L edges
lead to, with L layers. Each atom's energy counts in one part, and its derivatives are added up over the parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastlr.graph import Graph
from fastlr.models.derivatives import dipole

from .edge_list import morton_order
from .plan import Plan


class TooLarge(Exception):
    """The smallest part there is does not fit.

    Attributes:
        part: its graph.
    """

    def __init__(self, part: Graph):
        super().__init__(part)
        self.part = part


def evaluate_in_parts(plan: Plan, graph: Graph, fits: Callable[[Graph], bool], *, forces: bool) -> dict[str, Tensor]:
    """As ``Plan.evaluate`` of one structure, for a short-range model.

    Args:
        fits: whether a part is small enough; parts are halved until they are.

    Raises:
        TooLarge: an atom with all that its energy depends on is too large a part.
    """
    n = graph.num_nodes
    out = {"energy": torch.zeros(1, dtype=torch.float64), "atomic_energies": torch.zeros(n, dtype=torch.float64)}
    if forces:
        out |= {"forces": torch.zeros(n, 3, dtype=torch.float64), "virial": torch.zeros(1, 3, 3, dtype=torch.float64)}
    waiting = [morton_order(graph.positions, graph.batch).numpy()]  # neighbours in space, so that few atoms are around
    while waiting:
        core = waiting.pop()
        part, atoms = neighbourhood(graph, core, plan.config.num_layers)
        if not fits(part):
            if len(core) == 1:
                raise TooLarge(part)
            waiting += np.array_split(core, 2)
            continue
        counted = torch.zeros(len(atoms), dtype=torch.float64)
        counted[np.searchsorted(atoms, core)] = 1.0
        found, own = plan.evaluate(part, forces=forces, counted=counted), torch.from_numpy(atoms)
        out["energy"] += found["energy"]
        out["atomic_energies"].index_add_(0, own, found["atomic_energies"] * counted)
        if forces:
            out["forces"].index_add_(0, own, found["forces"])
            out["virial"] += found["virial"]
    if forces:
        volume = torch.linalg.det(graph.cell).abs()
        per_volume = torch.where(graph.pbc.all(dim=1), 1.0 / volume, torch.nan)
        out["stress"] = out["virial"] * per_volume[:, None, None]
    return out | dipole(graph, out)


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
