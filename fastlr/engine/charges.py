"""The charges of a plan: equilibration, and what their energy and the energy that depends on them pull at."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.graph import Graph
from fastlr.kernels.charge_solver.direct import Equilibration
from fastlr.nn.charge_equilibration import ChargeEquilibration, named_failures

# Bound on the root-mean-square error of charges found by iteration, e, and accuracy of Coulomb sums that inference asks
# for at most: forces are then good to a few 1e-6 eV/Å, which is what float32 can tell.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}
ACCURACY = {torch.float32: 3e-6, torch.float64: 0.0}


def equilibrated(module: ChargeEquilibration, graph: Graph, chi: Tensor, site_energy: bool) -> Direct | ByAutograd:
    """Charges of a graph with electronegativities chi (N,), float64."""
    slabs = graph.coulomb is not None and bool((graph.coulomb.height > 0.0).any())
    return (ByAutograd if slabs or graph.conditions is not None else Direct)(module, graph, chi, site_energy)


class Direct:
    """The usual case: molecules and cells whose total charge is given.

    Attributes:
        charges: (N,) e. coulomb_energy, external_energy: (B,) eV. site_energies: (N,) eV.
    """

    def __init__(self, module: ChargeEquilibration, graph: Graph, chi: Tensor, site_energy: bool):
        hardness = module.hardness.detach().index_select(0, graph.species)
        dtype = module.operations.dtype
        options = {"tolerance": TOLERANCE[dtype], "single": dtype == torch.float32}
        if graph.memory is not None:
            options["memory"] = graph.memory
        with named_failures():
            self.solution = Equilibration(
                module.system(graph), chi, hardness, graph.charge, COULOMB_CONSTANT, **options
            )
        self.charges = q = self.solution.charges
        self.coulomb_energy = self.solution.energy
        self.external_energy = torch.zeros_like(self.coulomb_energy)
        self.site_energies = chi * q + 0.5 * hardness * q**2
        self._site_energy = site_energy

    def gradients(self, by_charge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the charges' energy, and of a function of them whose gradient is given, by positions, strain and chi."""
        with named_failures():
            return self.solution.gradients(by_charge, self._site_energy)


class ByAutograd:
    """Slabs, fragments, fields and potentials: the same by the differentiable operation."""

    def __init__(self, module: ChargeEquilibration, graph: Graph, chi: Tensor, site_energy: bool):
        with torch.enable_grad():
            strain = torch.zeros_like(graph.cell)
            self.leaves = [tensor.detach().requires_grad_() for tensor in (graph.positions, strain, chi)]
            deformed = replace(graph, positions=self.leaves[0]).strained(self.leaves[1])
            self.found = module(deformed, self.leaves[2])
        for name in ("charges", "coulomb_energy", "external_energy", "site_energies"):
            setattr(self, name, self.found[name].detach())
        self._site_energy = site_energy

    def gradients(self, by_charge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Direct.gradients``."""
        names = ("coulomb_energy", "external_energy", *(("site_energies",) if self._site_energy else ()))
        sums = [self.found[name] for name in names if self.found[name].requires_grad]
        seeds = [by_charge, *(torch.ones_like(total) for total in sums)]
        return torch.autograd.grad([self.found["charges"], *sums], self.leaves, seeds)
