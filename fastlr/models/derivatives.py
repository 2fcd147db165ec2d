"""Forces and stress: exact derivatives of a model's energy."""

from dataclasses import replace

import torch
from torch import Tensor

from fastlr.conditions import Conditions
from fastlr.graph import Graph
from fastlr.standard_settings import standard_settings


@standard_settings()
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
        and, for models with charges,
        dipole: (B, 3) e Å about the origin; NaN for periodic structures, which have none;
        and, unless the graph is kept,
        polarisation: (B, 3) e Å, -dE/dF for a uniform field F, about the origin; of slabs the part along their normal,
            NaN for cells. It is not the dipole: charges enter the short-range energy;
        potential: (B,) eV/e, dE/dQ; NaN where charges of fragments are given.
    """
    if not forces:
        with torch.set_grad_enabled(create_graph):
            return finish(graph, model(graph))
    names = ["forces", "virial"]
    with torch.enable_grad():
        deformed, *leaves = deformable(graph)
        if model.config.kind == "nequip-lr" and not create_graph:
            deformed, *others = responsive(deformed)
            leaves, names = [*leaves, *others], [*names, "by_potential", "potential"]
        out = model(deformed)
        gradients = pulled(out["energy"].sum(), leaves, create_graph)
    out = out | dict(zip(names, gradients, strict=True))
    if "potential" in out:
        out["potential"] = by_total(graph, out["potential"])
    out = finish(graph, out)
    return out if create_graph else {key: value.detach() for key, value in out.items()}


def deformable(graph: Graph) -> tuple[Graph, Tensor, Tensor]:
    """The graph as a function of positions (N, 3) and strains (B, 3, 3), which follow it."""
    positions = graph.positions.detach().requires_grad_(True)
    strain = graph.cell.new_zeros(graph.cell.shape).requires_grad_(True)
    return replace(graph, positions=positions).strained(strain), positions, strain


def responsive(graph: Graph) -> tuple[Graph, Tensor, Tensor]:
    """The graph as a function of an external potential (N,), V, and of total charges (B,) or, where these are given,
    charges of fragments (G,), e."""
    conditions = graph.conditions or Conditions.none(graph.num_structures, graph.num_nodes).to(graph.positions.device)
    potential = torch.zeros_like(conditions.potential).requires_grad_()
    total = graph.charge if conditions.fragment is None else conditions.fragment_charge
    total = total.detach().clone().requires_grad_()
    conditions = replace(conditions, potential=conditions.potential + potential)
    if conditions.fragment is None:
        return replace(graph, conditions=conditions, charge=total), potential, total
    return replace(graph, conditions=replace(conditions, fragment_charge=total)), potential, total


def by_total(graph: Graph, gradient: Tensor) -> Tensor:
    """(B,) derivatives by total charges, from those by the last of ``responsive``; NaN where there are fragments."""
    if graph.conditions is None or graph.conditions.fragment is None:
        return gradient
    fragment = graph.conditions.fragment
    structure = graph.batch.new_zeros(len(gradient)).index_copy(0, fragment, graph.batch)
    count = torch.bincount(structure, minlength=graph.num_structures)
    total = gradient.new_zeros(graph.num_structures).index_add(0, structure, gradient)
    return torch.where(count == 1, total, torch.nan)


def pulled(energy: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Forces and virials, from an energy and its positions and strains; and gradients by what else ``leaves`` are."""
    # an energy that no edge contributes to has no gradient at all
    total = energy + 0.0 * sum(leaf.sum() for leaf in leaves)
    gradient, *others = torch.autograd.grad(total, leaves, create_graph=create_graph)
    return -gradient, *others


def finish(graph: Graph, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """What follows from the results of ``evaluate``: the stress, where there is a virial, and the dipole; and where
    there are derivatives "by_potential" (N,) of the charges, the polarisation."""
    out = dict(out)
    if "by_potential" in out:
        out["polarisation"] = polarisation(graph, out.pop("by_potential"))
    if "virial" not in out:
        return out | dipole(graph, out)
    is_cell = graph.pbc.all(dim=1)
    # NaN after the division, not by it: dividing by NaN would give the cells of the batch NaN gradients in training
    volume = torch.where(is_cell, torch.linalg.det(graph.cell).abs(), 1.0)[:, None, None]
    stress = torch.where(is_cell[:, None, None], out["virial"] / volume, torch.nan)
    return out | {"stress": stress} | dipole(graph, out)


def polarisation(graph: Graph, by_potential: Tensor) -> Tensor:
    """The polarisation of ``evaluate``, from derivatives (N,) by an external potential at each atom."""
    moment = graph.sum_nodes(by_potential.detach()[:, None] * graph.positions.detach())
    if not graph.pbc.any():
        return moment
    # a slab's normal; what stands in a cell for the direction without period is normal to the others
    normal = torch.where(graph.pbc[:, :, None], 0.0, graph.cell).sum(dim=1)
    normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
    count = graph.pbc.sum(dim=1)[:, None]
    along = torch.where(count == 2, (moment * normal).sum(dim=1, keepdim=True) * normal, torch.nan)
    return torch.where(count == 0, moment, along)


def dipole(graph: Graph, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """The dipole of ``evaluate``, where there are charges."""
    if "charges" not in out:
        return {}
    dipole = graph.sum_nodes(out["charges"][:, None] * graph.positions.detach())
    return {"dipole": torch.where(graph.pbc.any(dim=1)[:, None], torch.nan, dipole)}
