"""The charges of a plan: equilibration, and what their energy and the energy that depends on them pull at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.graph import Graph
from fastlr.kernels.charge_solver.gradients import ChargeGradients
from fastlr.models.derivatives import by_total, deformable, responsive
from fastlr.nn.charge_equilibration import ChargeEquilibration, named_failures

from .precision import Precision

if TYPE_CHECKING:
    from fastlr.kernels.charge_solver.direct import Equilibration


class Charges:
    """The charges of graphs that differ in positions, total charges and conditions alone.

    Args:
        model: ``NequIPLR``.
    """

    def __init__(self, model: torch.nn.Module):
        self.module: ChargeEquilibration = model.equilibration
        self.site_energy, self.precision = model.config.site_energy, Precision.of(model)
        self._equilibration: Equilibration | None = None

    def of(self, graph: Graph, chi: Tensor) -> Equilibrated:
        """The charges with electronegativities chi (N,), float64."""
        slabs = graph.coulomb is not None and bool((graph.coulomb.height > 0.0).any())
        by_reference = self.module.operations.chosen["charge_equilibration"] == "reference"
        if slabs or by_reference or graph.conditions is not None:
            require_right_charges(self.module, graph, by_autograd=True)
            return ByAutograd(self.module, graph, chi, self.site_energy)
        with named_failures():
            if self._equilibration is None:
                self._equilibration = self._prepared(graph)
            else:
                self._equilibration.move(graph.positions)
            self._equilibration.solve(chi, graph.charge, graph.memory)
        return Direct(self._equilibration, self.site_energy)

    def _prepared(self, graph: Graph) -> Equilibration:
        from fastlr.kernels.charge_solver.direct import Equilibration

        require_right_charges(self.module, graph, by_autograd=False)
        hardness = self.module.hardness.detach().index_select(0, graph.species)
        options = {"tolerance": self.precision.tolerance, "single": self.precision.single}
        return Equilibration(self.module.system(graph), hardness, COULOMB_CONSTANT, **options)


def require_right_charges(module: ChargeEquilibration, graph: Graph, by_autograd: bool) -> None:
    """Have the regimes of charge equilibration that a batch needs compared with the reference, unless they have been.

    Raises:
        BackendError: one differs.
    """
    if module.operations.chosen["charge_equilibration"] == "reference":
        return
    from fastlr.checks.charges import require_charges

    has_fragments = graph.conditions is not None and graph.conditions.fragment is not None
    require_charges(module.system(graph), module.operations.dtype, by_autograd, has_fragments)


class Equilibrated:
    """Charges that have been found.

    Attributes:
        charges: (N,) e. electronegativities: (N,) eV/e. coulomb_energy, external_energy: (B,) eV. site_energies: (N,)
            eV.
    """

    _site_energy: bool

    def join(self, out: dict[str, Tensor]) -> None:
        """Add what the charges contribute to "atomic_energies" (N,), and all else that is known of them."""
        if self._site_energy:
            out["atomic_energies"] += self.site_energies
        for name in ("charges", "electronegativities", "coulomb_energy", "external_energy"):
            out[name] = getattr(self, name)


class Direct(Equilibrated):
    """The usual case: molecules and cells whose total charge is given."""

    def __init__(self, solution: Equilibration, site_energy: bool):
        self.solution, self._site_energy = solution, site_energy
        self.electronegativities = chi = solution.electronegativity
        self.charges, self.coulomb_energy = solution.charges, solution.energy
        self.external_energy = torch.zeros_like(self.coulomb_energy)
        self.site_energies = chi * self.charges + 0.5 * solution.hardness * self.charges**2

    def gradients(self, by_charge: Tensor) -> ChargeGradients:
        """Of the charges' energy, and of a function of them whose gradient is given."""
        with named_failures():
            return self.solution.gradients(by_charge, self._site_energy)


class ByAutograd(Equilibrated):
    """Slabs, fragments, fields and potentials: the same by the differentiable operation."""

    def __init__(self, module: ChargeEquilibration, graph: Graph, chi: Tensor, site_energy: bool):
        with torch.enable_grad():
            chi_ = chi.detach().clone().requires_grad_()
            deformed, *geometry = deformable(graph)
            deformed, *others = responsive(deformed)
            self.leaves, self.graph = [*geometry, chi_, *others], graph
            self.found = module(deformed, chi_)
        for name in ("charges", "coulomb_energy", "external_energy", "site_energies"):
            setattr(self, name, self.found[name].detach())
        self.electronegativities, self._site_energy = chi, site_energy

    def gradients(self, by_charge: Tensor) -> ChargeGradients:
        """See ``Direct.gradients``."""
        names = ("coulomb_energy", "external_energy", *(("site_energies",) if self._site_energy else ()))
        with torch.enable_grad():  # of one number: for others PyTorch imports its algebra, which takes half a second
            total = (self.found["charges"] * by_charge).sum() + sum(self.found[name].sum() for name in names)
        found = torch.autograd.grad(total, self.leaves, materialize_grads=True)
        return ChargeGradients(*found[:4], by_total(self.graph, found[4]))
