"""Forces and stress: exact derivatives of a model's energy."""

from dataclasses import replace

import torch
from torch import Tensor

from fastlr.graph import Graph


def evaluate(model, graph: Graph, *, forces: bool = True, create_graph: bool = False) -> dict[str, Tensor]:
    """Everything a model predicts for a batch.

    Args:
        model: returns "energy" for a graph, and more.
        graph: the structures.
        forces: whether to compute forces and stress.
        create_graph: keep the graph of the derivatives, for training on them.

    Returns:
        what the model returns, and
        forces: (N, 3) eV/Å;
        virial: (B, 3, 3) eV, dE/d(strain), symmetric;
        stress: (B, 3, 3) eV/Å^3, virial / volume, tension positive; NaN where a structure is not periodic in all
            three directions (Knuth et al., Comput. Phys. Commun. 190, 33, 2015);
        dipole: (B, 3) e Å about the origin, for models with charges; NaN for periodic structures, which have none.
    """
    if not forces:
        with torch.set_grad_enabled(create_graph):
            return finish(graph, model(graph))
    with torch.enable_grad():
        deformed, *leaves = deformable(graph)
        out = model(deformed)
        gradients = pulled(out["energy"].sum(), leaves, create_graph)
    out = finish(graph, out | dict(zip(("forces", "virial"), gradients, strict=True)))
    return out if create_graph else {key: value.detach() for key, value in out.items()}


def deformable(graph: Graph) -> tuple[Graph, Tensor, Tensor]:
    """The graph as a function of positions (N, 3) and strains (B, 3, 3), which follow it."""
    positions = graph.positions.detach().requires_grad_(True)
    strain = graph.cell.new_zeros(graph.cell.shape).requires_grad_(True)
    return replace(graph, positions=positions).strained(strain), positions, strain


def pulled(energy: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Forces and virials, from an energy and its positions and strains; and gradients by what else ``leaves`` are."""
    # an energy that no edge contributes to has no gradient at all
    total = energy + 0.0 * sum(leaf.sum() for leaf in leaves)
    gradient, *others = torch.autograd.grad(total, leaves, create_graph=create_graph)
    return -gradient, *others


def finish(graph: Graph, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """What follows from the results of ``evaluate``: the stress, where there is a virial, and the dipole."""
    if "virial" not in out:
        return out | dipole(graph, out)
    is_cell = graph.pbc.all(dim=1)
    # NaN after the division, not by it: dividing by NaN would give the cells of the batch NaN gradients in training
    volume = torch.where(is_cell, torch.linalg.det(graph.cell).abs(), 1.0)[:, None, None]
    stress = torch.where(is_cell[:, None, None], out["virial"] / volume, torch.nan)
    return out | {"stress": stress} | dipole(graph, out)


def dipole(graph: Graph, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """The dipole of ``evaluate``, where there are charges."""
    if "charges" not in out:
        return {}
    dipole = graph.sum_nodes(out["charges"][:, None] * graph.positions.detach())
    return {"dipole": torch.where(graph.pbc.any(dim=1)[:, None], torch.nan, dipole)}
