"""Global charge equilibration of Gaussian charges."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastlr.backends import Operations
from fastlr.constants import COULOMB_CONSTANT
from fastlr.errors import InputError
from fastlr.graph import Graph
from fastlr.kernels.charge_solver.naive import SolverError
from fastlr.kernels.ewald.system import System

# Bound on the root-mean-square error of charges found by iteration, e. A model in float32 rounds them to 1e-7.
TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-9}


@contextmanager
def named_failures():
    """Failures of a solver as errors that name the structure."""
    try:
        yield
    except SolverError as error:
        raise InputError(
            f"charge equilibration failed for structure {error.structures[0]} of the batch: {error.reason}; are "
            "its positions finite and its atoms apart?"
        ) from None


class ChargeEquilibration(nn.Module):
    """Charges that minimise  sum_i (chi_i q_i + J_i q_i^2 / 2) + (k / 2) q' A q  with sum q = Q in each structure.

    Rappe & Goddard, J. Phys. Chem. 95, 3358 (1991); with Gaussian charges and learned electronegativities as in
    4G-HDNNP (Ko et al., Nat. Commun. 12, 398, 2021) and NequIP-LR (Maruf, Kim & Ahmad, arXiv 2503.17949).
    A is ``kernels/ewald/naive.py``; the hardness J > 0 is learned, one number a species. Everything in float64.

    Args:
        hardness: where J starts, one number a species, eV/e^2.
        widths: width of the Gaussian charge of each species, Å.
        operations: the kernels in use.
    """

    def __init__(self, hardness: list[float], widths: list[float], operations: Operations):
        super().__init__()
        # its logarithm is learned, so that J stays positive and changes at the same relative rate for all species
        self.log_hardness = nn.Parameter(torch.tensor(hardness, dtype=torch.float64).log())
        self.register_buffer("widths", torch.tensor(widths, dtype=torch.float64))
        self.operations = operations

    @property
    def hardness(self) -> Tensor:
        """(species,) J in eV/e^2, positive."""
        return self.log_hardness.exp()

    def system(self, graph: Graph) -> System:
        """The Gaussian charges of a batch.

        Raises:
            InputError: the graph was built without Coulomb tables.
        """
        if graph.coulomb is None:
            raise InputError("this graph has no Coulomb tables; build it with the model's own settings")
        squared_widths = self.widths.index_select(0, graph.species) ** 2
        return System.of(graph.positions, squared_widths, graph.cell, graph.batch, graph.node_ptr, graph.coulomb)

    def forward(self, graph: Graph, electronegativity: Tensor) -> dict[str, Tensor]:
        """Solve for the charges.

        Args:
            electronegativity: (N,) float64, chi in eV/e.

        Returns:
            charges: (N,) e.
            coulomb_energy: (B,) (k / 2) q' A q in eV.
            external_energy: (B,) of the charges in an external potential or field, in eV.
            site_energies: (N,) chi q + J q^2 / 2 in eV.

        Raises:
            InputError: the equations of a structure have no unique solution (for instance, positions not finite), or
                the solver does not find it; or a chemical potential is given, which ``engine.fixed_potential`` serves.
        """
        hardness = self.hardness.index_select(0, graph.species)
        conditions, total = graph.conditions, electronegativity
        options = {"tolerance": TOLERANCE[self.operations.dtype]}
        if conditions is not None:
            if conditions.has_potentials:
                raise InputError("a chemical potential is given where a total charge is needed")
            potential = conditions.potential_at(graph.positions, graph.batch)
            total = electronegativity + potential
            if conditions.constraints is not None:
                options["constraints"] = conditions.constraints
        if graph.memory is not None:
            options["memory"] = graph.memory
        with named_failures():
            q, coulomb_energy, _ = self.operations.charge_equilibration(
                self.system(graph), total, hardness, graph.charge, COULOMB_CONSTANT, **options
            )
        external = torch.zeros_like(coulomb_energy)
        if conditions is not None:
            external = graph.sum_nodes(q * potential)
        return {
            "charges": q,
            "coulomb_energy": coulomb_energy,
            "external_energy": external,
            "site_energies": electronegativity * q + 0.5 * hardness * q**2,
        }
