"""The inference plan of a model: energies and forces by kernels alone, forwards and back, without autograd."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from fastlr.backends import Operations
from fastlr.graph import MIN_DISTANCE, Graph, overlap
from fastlr.memory import MemoryModel
from fastlr.models.derivatives import dipole

from .buffers import Buffers
from .charges import equilibrated
from .edge_list import EdgeList
from .folding import Readout, fold_layers
from .pruning import SCALAR, prune
from .stages import BoundEdges, BoundStack, Stage


class Plan:
    """A model for inference on CPUs.

    Buffers and the calls of kernels on them are made once for an edge list and used again while only positions change.

    Args:
        model: ``NequIP`` or ``NequIPLR``.
        num_intervals: of the radial tables.
    """

    def __init__(self, model: torch.nn.Module, num_intervals: int):
        config = model.config
        self.model, self.config, self.dtype = model, config, config.torch_dtype
        self.num_intervals = num_intervals
        self.settings = torch.tensor(
            [config.r_max**2, num_intervals / config.r_max, num_intervals - 1.0], dtype=torch.float64
        )
        types = model.type_embedding.weight.detach()
        fold = {"embedding": model.edge_embedding, "num_intervals": num_intervals, "types": types, "dtype": self.dtype}
        if config.kind == "nequip-lr":
            charge, energy = model.charge_stack, model.energy_stack
            layers, read = prune(energy, {SCALAR})
            self.energy_layers = fold_layers(layers, energy.norm, first=False, **fold)
            layers, _ = prune(charge, read if config.reuse_features else {SCALAR})
            self.charge_layers = fold_layers(layers, charge.norm, first=True, **fold)
            self.norms = charge.norm, energy.norm
        else:
            layers, _ = prune(model.stack, {SCALAR})
            self.charge_layers, self.norms = [], (None, model.stack.norm)
            self.energy_layers = fold_layers(layers, model.stack.norm, first=True, **fold)
        self.buffers = Buffers()
        self._bound: Bound | None = None
        self._lock = threading.Lock()

    @staticmethod
    def obstacle(operations: Operations) -> str | None:
        """Why there is no plan for a model on these kernels, or None."""
        if operations.backend != "cpu":
            return f"it is made of kernels for CPUs, and the backend is '{operations.backend}'"
        return None

    def evaluate(self, graph: Graph, *, forces: bool = True) -> dict[str, Tensor]:
        """As ``fastlr.models.derivatives.evaluate``; edges of the graph may be longer than the cutoff.

        Raises:
            InputError: atoms overlap, or the charges cannot be found.
        """
        with torch.no_grad(), self._lock:  # buffers serve one evaluation at a time
            bound = self._bind(graph)
            out = bound.energies(graph)
            if forces:
                out |= bound.forces(graph)
            return bound.finish(graph, out)

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Of the weights and tables, and of the buffers as they are."""
        layers = [*self.charge_layers, *self.energy_layers]
        return sum(layer.num_bytes for layer in layers), self.buffers.num_bytes

    @property
    def memory(self) -> MemoryModel:
        """Of the edge list and the buffers; copies of rows are at most as many as there are threads."""
        itemsize, harmonics = torch.finfo(self.dtype).bits // 8, (self.config.l_max + 1) ** 2
        per_edge, per_node, threads = 220 + 2 * (harmonics + 1) * itemsize, 200, torch.get_num_threads()
        for layer in (*self.charge_layers, *self.energy_layers):
            gate, width = layer.shape.gate, layer.first_layout.dim_in
            per_node += (gate.dim_in + 2 * gate.dim_out + (2 + threads) * width) * itemsize
        return MemoryModel(per_edge, per_node + 32 * threads, dense=False)

    def stages(self) -> list[Stage]:
        """What an evaluation of the last graph consists of, kernel by kernel."""
        return [] if self._bound is None else self._bound.stages()

    def _bind(self, graph: Graph) -> Bound:
        known = self._bound
        if known is None or not known.serves(graph):
            self._bound = known = Bound(self, graph)
        return known


class Bound:
    """A plan with its buffers, for one edge list."""

    def __init__(self, plan: Plan, graph: Graph):
        self.plan, self.config = plan, plan.config
        self.edge_index, self.cell, self.threads = graph.edge_index, graph.cell, torch.get_num_threads()
        self.edges = EdgeList.of(graph)
        self.geometry = BoundEdges(self.edges, plan.settings, plan.config.l_max, plan.dtype, plan.buffers)
        self.charged = bool(plan.charge_layers)
        num_own, species, model = 0, self.edges.species, plan.model
        self.readout = Readout(model.readout, model.scale_shift, plan.dtype, species)
        if self.charged:
            scale_shift = model.electronegativity_scale_shift
            self.electronegativity = Readout(model.electronegativity_readout, scale_shift, plan.dtype, species)
            num_own = plan.model.charge_encoding.num_features
            self.charge_stack = self._stack("charge layer", plan.charge_layers, plan.norms[0], 0)
        self.energy_stack = self._stack("layer", plan.energy_layers, plan.norms[1], num_own)
        if self.readout.is_linear:  # then its gradient is always the same
            self.energy_stack.gradient.copy_(self.readout.backward())
        self.single = graph.num_structures == 1
        is_cell = graph.pbc.all(dim=1)
        volume = torch.linalg.det(graph.cell).abs() if bool(is_cell.any()) else is_cell.double()
        self.per_volume = torch.where(is_cell, 1.0 / volume, torch.nan)[:, None, None]

    def _stack(self, name: str, layers, norm, num_own: int) -> BoundStack:
        return BoundStack(name, layers, norm, num_own, self.geometry, self.plan.buffers)

    def serves(self, graph: Graph) -> bool:
        """Whether the graph differs from the one this was made for in positions and charges alone."""
        same = graph.edge_index is self.edge_index and graph.cell is self.cell
        return same and torch.get_num_threads() == self.threads

    def energies(self, graph: Graph) -> dict[str, Tensor]:
        """What ``fastlr.models`` return."""
        edges = self.edges
        self.geometry.positions.copy_(edges.sort(graph.positions))
        self.geometry.prepare()
        self._refuse_overlap(graph)
        extra = {}
        if self.charged:
            extra = self._charges(graph)
        run(self.energy_stack.forward)
        atomic_energies = edges.unsort(self.readout(self.energy_stack.out))
        if self.charged and self.config.site_energy:
            atomic_energies = atomic_energies + self.equilibrated.site_energies
        energy = self._sum(graph.batch, atomic_energies)
        if self.charged:
            energy = energy + extra["coulomb_energy"] + extra["external_energy"]
        return {"energy": energy, "atomic_energies": atomic_energies, **extra}

    def finish(self, graph: Graph, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """As ``derivatives.finish``, with what is known of the cells."""
        if "virial" in out:
            out["stress"] = out["virial"] * self.per_volume
        return out | dipole(graph, out)

    def _sum(self, batch: Tensor, values: Tensor) -> Tensor:
        """(N, ...) -> (B, ...)."""
        if self.single:
            return values.sum(dim=0, keepdim=True)
        return values.new_zeros(len(self.per_volume), *values.shape[1:]).index_add_(0, batch, values)

    def stages(self) -> list[Stage]:
        """Forwards and back, as they follow one another."""
        geometry, energy = self.geometry, self.energy_stack
        charges = charges_back = []
        if self.charged:
            stack = self.charge_stack
            charges = [*stack.forward, Stage("electronegativities, charge equilibration", lambda: None)]
            charges_back = [Stage("adjoint of the charges, Coulomb forces", lambda: None), *stack.backward]
        return [
            Stage("edges: vectors, harmonics, places in the tables", geometry.prepare, geometry.preparation),
            *charges,
            *energy.forward,
            Stage("readout", lambda: self.readout(energy.out)),
            *energy.backward,
            *charges_back,
            Stage("forces and virial", geometry.forces, geometry.pulling),
        ]

    def _charges(self, graph: Graph) -> dict[str, Tensor]:
        """The charge stack, the equilibration, and the input of the energy stack."""
        plan, edges, model = self.plan, self.edges, self.plan.model
        run(self.charge_stack.forward)
        features = self.charge_stack.out
        chi = edges.unsort(self.electronegativity(features))
        self.equilibrated = found = equilibrated(model.equilibration, graph, chi, self.config.site_energy)
        self.encoded = edges.sort(found.charges).to(plan.dtype)
        if model.charge_encoding.kind == "scalar":
            self.encoding = self.encoded[:, None]
        else:
            with torch.enable_grad():
                self.encoding = model.charge_encoding(self.encoded.requires_grad_())
        self.energy_stack.own.copy_(self.encoding.detach())
        x, num_scalars = self.energy_stack.x, self.config.channels[0]
        if self.config.reuse_features:
            parts = [features[:, :num_scalars], self.energy_stack.own, features[:, num_scalars:]]
        else:
            parts = [model.type_embedding.weight.index_select(0, edges.species), self.energy_stack.own]
        torch.cat(parts, dim=1, out=x)
        names = ("charges", "coulomb_energy", "external_energy")
        return {name: getattr(found, name) for name in names} | {"electronegativities": chi}

    def forces(self, graph: Graph) -> dict[str, Tensor]:
        """Forces (N, 3) and virial (B, 3, 3), after ``energies`` of the same graph."""
        edges = self.edges
        self.geometry.clear()
        if not self.readout.is_linear:
            self.energy_stack.gradient.copy_(self.readout.backward())
        run(self.energy_stack.backward)
        slopes = self._charge_gradients() if self.charged else None
        forces = edges.unsort(self.geometry.forces())
        per_node = self.geometry.virials.view(-1, 3, 3)
        virial = self._sum(edges.batch, per_node)
        virial = 0.5 * (virial + virial.transpose(1, 2))
        if slopes is not None:
            forces, virial = forces - slopes[0], virial + slopes[1]
        return {"forces": forces, "virial": virial}

    def _charge_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients by positions and strain through the charges; the charge stack runs backwards."""
        plan, edges, config = self.plan, self.edges, self.config
        num_scalars, num_own = config.channels[0], self.energy_stack.own.shape[1]
        by_x = self.energy_stack.x_gradient
        before = num_scalars if config.reuse_features else by_x.shape[1] - num_own
        own = slice(before, before + num_own)
        by_encoding = self.energy_stack.own_gradient() + by_x[:, own]
        if plan.model.charge_encoding.kind == "scalar":
            by_charge = by_encoding[:, 0]
        else:
            (by_charge,) = torch.autograd.grad(self.encoding, self.encoded, by_encoding)
        *slopes, by_chi = self.equilibrated.gradients(edges.unsort(by_charge.double()))
        gradient = self.charge_stack.gradient
        if config.reuse_features:
            gradient[:, :num_scalars] = by_x[:, :num_scalars]
            gradient[:, num_scalars:] = by_x[:, own.stop :]
        else:
            gradient.zero_()
        gradient[:, :num_scalars] += self.electronegativity.backward(edges.sort(by_chi))
        run(self.charge_stack.backward)
        return tuple(slopes)

    def _refuse_overlap(self, graph: Graph) -> None:
        shortest = self.geometry.shortest
        if shortest.shape[0] and float(shortest.min()) < MIN_DISTANCE**2:
            self._name_overlap(graph)

    def _name_overlap(self, graph: Graph) -> None:
        square = (graph.edge_vectors() ** 2).sum(dim=1)
        raise overlap(graph, int(square.argmin()), float(square.min()) ** 0.5)


def run(stages) -> None:
    """One after another."""
    for stage in stages:
        stage.run()
