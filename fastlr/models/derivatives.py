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
        positions = graph.positions.detach().requires_grad_(True)
        strain = graph.cell.new_zeros(graph.cell.shape).requires_grad_(True)
        deformed = replace(graph, positions=positions).strained(strain)
        out = model(deformed)
        # an energy that no edge contributes to has no gradient at all
        gradient, virial = torch.autograd.grad(
            out["energy"].sum() + 0.0 * (positions.sum() + strain.sum()), (positions, strain), create_graph=create_graph
        )
    out = finish(graph, out | {"forces": -gradient, "virial": virial})
    return out if create_graph else {key: value.detach() for key, value in out.items()}


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
