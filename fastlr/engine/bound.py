"""A plan at work: buffers and calls of kernels for one edge list, and the order in which they are run."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlr.graph import MIN_DISTANCE, Graph, overlap
from fastlr.kernels import cores
from fastlr.models.derivatives import dipole, polarisation

from .charges import Charges
from .edge_list import EdgeList
from .folding import Readout
from .stages import BoundEdges, BoundStack, Stage


class Bound:
    """A plan with its buffers, for the edge list of a graph.

    Args:
        plan: ``plan.Plan``.
        large: see ``EdgeList.of``.
    """

    def __init__(self, plan, graph: Graph, large: bool = False):
        self.plan, self.config, self.run = plan, plan.config, plan.run
        self.edge_index, self.cell, self.coulomb = graph.edge_index, graph.cell, graph.coulomb
        self.threads = cores.count()
        self.edges, self.large = EdgeList.of(graph, large), large
        self.geometry = BoundEdges(self.edges, plan.settings, plan.config.l_max, plan.dtype, plan.buffers)
        self.charged = bool(plan.charge_layers)
        num_own, species, model = 0, self.edges.species, plan.model
        self.readout = Readout(model.readout, model.scale_shift, plan.dtype, species)
        if self.charged:
            scale_shift = model.electronegativity_scale_shift
            self.electronegativity = Readout(model.electronegativity_readout, scale_shift, plan.dtype, species)
            num_own = plan.model.charge_encoding.num_features
            self.equilibration = Charges(model)
            self.charge_stack = self._stack("charge layer", plan.charge_layers, plan.norms[0], 0)
        self.energy_stack = self._stack("layer", plan.energy_layers, plan.norms[1], num_own)
        self._seeded = False
        self.single = graph.num_structures == 1
        is_cell = graph.pbc.all(dim=1)
        volume = torch.linalg.det(graph.cell).abs() if bool(is_cell.any()) else is_cell.double()
        self.per_volume = torch.where(is_cell, 1.0 / volume, torch.nan)[:, None, None]
        # moments that no structure of the batch has
        self.no_moment = torch.full_like(graph.cell[:, 0], torch.nan)
        self.has_dipole, self.has_polarisation = not bool(graph.pbc.any(dim=1).all()), not bool(is_cell.all())

        geometry = self.geometry
        self._prepare = Stage("edges: vectors, harmonics, places in the tables", geometry.prepare, geometry.preparation)
        self._equilibrate = Stage("electronegativities, charge equilibration", self._find_charges)
        self._read_out = Stage("readout", self._find_atomic_energies)
        self._adjoint = Stage("adjoint of the charges, Coulomb forces", self._differentiate_charges)
        self._pull = Stage("forces and virial", self._find_forces, geometry.pulling)

    def _stack(self, name: str, layers, norm, num_own: int) -> BoundStack:
        return BoundStack(name, layers, norm, num_own, self.geometry, self.plan.buffers)

    def serves(self, graph: Graph, large: bool = False) -> bool:
        """Whether the graph differs from the one this was made for in positions and charges alone."""
        same = graph.edge_index is self.edge_index and graph.cell is self.cell and graph.coulomb is self.coulomb
        return same and cores.count() == self.threads and large == self.large

    def stages(self) -> list[Stage]:
        """Forwards and back, as they follow one another."""
        charges = charges_back = []
        if self.charged:
            charges = [*self.charge_stack.forward, self._equilibrate]
            charges_back = [self._adjoint, *self.charge_stack.backward]
        energy = self.energy_stack
        forward = [self._prepare, *charges, *energy.forward, self._read_out]
        return [*forward, *energy.backward, *charges_back, self._pull]

    def evaluate(self, graph: Graph, forces: bool) -> dict[str, Tensor]:
        """See ``plan.Plan.evaluate``."""
        self._begin(graph)
        if self.charged:
            self.run(*self.charge_stack.forward, self._equilibrate)
        self.run(*self.energy_stack.forward, self._read_out)
        out = {"atomic_energies": self.atomic_energies}
        if self.charged:
            self.equilibrated.join(out)
        out["energy"] = self._sum(graph.batch, out["atomic_energies"])
        if self.charged:
            out["energy"] += out["coulomb_energy"] + out["external_energy"]
        if forces:
            self.geometry.clear()
            self._seed()
            self.run(*self.energy_stack.backward)
            if self.charged:
                self.run(self._adjoint, *self.charge_stack.backward)
            out |= self._pulled()
            if self.charged:
                out["forces"] -= self.by_charges.position
                out["virial"] += self.by_charges.strain
                out["polarisation"] = self.no_moment
                if self.has_polarisation:
                    out["polarisation"] = polarisation(graph, self.by_charges.potential)
                out["potential"] = self.by_charges.total
            out["stress"] = out["virial"] * self.per_volume
        self.graph = None
        if self.charged:
            out |= dipole(graph, out) if self.has_dipole else {"dipole": self.no_moment}
        return out

    def electronegativities(self, graph: Graph) -> Tensor:
        """See ``plan.Plan.electronegativities``."""
        self._begin(graph)
        self.run(*self.charge_stack.forward)
        return self._electronegativities()

    def energies_at(self, graph: Graph, charges: Tensor | None, counted: Tensor, forces: bool) -> dict[str, Tensor]:
        """See ``plan.Plan.energies_at``."""
        self._begin(graph)
        if charges is not None:
            if self.config.reuse_features:
                self.run(*self.charge_stack.forward)
            self._encode(charges)
        self.run(*self.energy_stack.forward, self._read_out)
        out = {"atomic_energies": self.atomic_energies}
        if forces:
            self.geometry.clear()
            self._seed(counted)
            self.run(*self.energy_stack.backward)
            if charges is not None:
                out["by_charge"] = self._by_charge()
                if self.config.reuse_features:
                    self._seed_charge_stack()
                    self.run(*self.charge_stack.backward)
            out |= self._pulled()
        return out

    def pulls_at(self, graph: Graph, by_chi: Tensor) -> dict[str, Tensor]:
        """See ``plan.Plan.pulls_at``."""
        self._begin(graph)
        self.run(*self.charge_stack.forward)
        self.chi = self._electronegativities()
        self.geometry.clear()
        self.charge_stack.gradient.zero_()
        self._add_slopes(by_chi)
        self.run(*self.charge_stack.backward)
        return self._pulled()

    def _begin(self, graph: Graph) -> None:
        self.graph = graph
        self.geometry.positions.copy_(self.edges.sort(graph.positions))
        self.run(self._prepare)
        self._refuse_overlap()

    def _pulled(self) -> dict[str, Tensor]:
        """Forces (N, 3) and virial (B, 3, 3) from the gradients by harmonics and lengths, in memory of their own."""
        self.run(self._pull)
        forces = self.found_forces.clone() if self.edges.order is None else self.edges.unsort(self.found_forces)
        return {"forces": forces, "virial": self.found_virial}

    def _seed(self, counted: Tensor | None = None) -> None:
        """The gradient that the energy stack's backward pass begins with; it need not change where that is linear."""
        always_the_same = self.readout.is_linear and counted is None
        if always_the_same and self._seeded:
            return
        gradient = self.readout.backward()
        if counted is not None:
            gradient = gradient * self.edges.sort(counted).to(gradient.dtype)[:, None]
        self.energy_stack.gradient.copy_(gradient)
        self._seeded = always_the_same

    def _find_atomic_energies(self) -> None:
        self.atomic_energies = self.edges.unsort(self.readout(self.energy_stack.out))

    def _find_forces(self) -> None:
        self.found_forces = self.geometry.forces()
        virial = self._sum(self.edges.batch, self.geometry.virials.view(-1, 3, 3))
        self.found_virial = 0.5 * (virial + virial.transpose(1, 2))

    def _find_charges(self) -> None:
        """From the features of the charge stack, the charges and the input of the energy stack."""
        self.chi = self._electronegativities()
        self.equilibrated = self.equilibration.of(self.graph, self.chi)
        self._encode(self.equilibrated.charges)

    def _electronegativities(self) -> Tensor:
        return self.edges.unsort(self.electronegativity(self.charge_stack.out))

    def _encode(self, charges: Tensor) -> None:
        """The input of the energy stack, from charges (N,)."""
        edges, model, features = self.edges, self.plan.model, self.charge_stack.out
        self.encoded = edges.sort(charges).to(self.plan.dtype).detach()
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

    def _differentiate_charges(self) -> None:
        """Gradients through the charges, of which the charge stack needs that by the electronegativities."""
        self.by_charges = self.equilibrated.gradients(self._by_charge())
        self._seed_charge_stack()
        self._add_slopes(self.by_charges.chi)

    @property
    def _own(self) -> slice:
        """The columns of the energy stack's input that encode charges."""
        num_own = self.energy_stack.own.shape[1]
        reused = self.config.reuse_features
        before = self.config.channels[0] if reused else self.energy_stack.x.shape[1] - num_own
        return slice(before, before + num_own)

    def _by_charge(self) -> Tensor:
        """(N,) float64 gradient of the energy stack by the charges, eV/e."""
        by_encoding = self.energy_stack.own_gradient() + self.energy_stack.x_gradient[:, self._own]
        if self.plan.model.charge_encoding.kind == "scalar":
            by_charge = by_encoding[:, 0]
        else:
            with torch.enable_grad():
                total = (self.encoding * by_encoding).sum()
            (by_charge,) = torch.autograd.grad(total, self.encoded)
        return self.edges.unsort(by_charge.double())

    def _seed_charge_stack(self) -> None:
        """The gradient that the charge stack's backward pass begins with, as far as the energy stack reads features."""
        gradient = self.charge_stack.gradient
        if not self.config.reuse_features:
            gradient.zero_()
            return
        by_x, num_scalars = self.energy_stack.x_gradient, self.config.channels[0]
        gradient[:, :num_scalars] = by_x[:, :num_scalars]
        gradient[:, num_scalars:] = by_x[:, self._own.stop :]

    def _add_slopes(self, by_chi: Tensor) -> None:
        """And as far as the electronegativities do, whose gradient (N,) is given."""
        by_features = self.electronegativity.backward(self.edges.sort(by_chi))
        self.charge_stack.gradient[:, : by_features.shape[1]] += by_features

    def _sum(self, batch: Tensor, values: Tensor) -> Tensor:
        """(N, ...) -> (B, ...)."""
        if self.single:
            return values.sum(dim=0, keepdim=True)
        return values.new_zeros(len(self.per_volume), *values.shape[1:]).index_add_(0, batch, values)

    def _refuse_overlap(self) -> None:
        shortest = self.geometry.shortest
        if shortest.shape[0] and float(shortest.min()) < MIN_DISTANCE**2:
            square = (self.graph.edge_vectors() ** 2).sum(dim=1)
            raise overlap(self.graph, int(square.argmin()), float(square.min()) ** 0.5)
