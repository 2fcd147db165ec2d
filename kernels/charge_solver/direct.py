"""Charges and their part of energy gradients without autograd: for inference, where only few gradients are wanted.

With q from K (q, mu) = (-chi, Q) (see ``naive.py``) and a function f of the charges that a model goes on with, the
energy is E = chi'q + q'J q / 2 + k q'A q / 2 + f(q), or without the first two terms. At the charges the first three
are stationary, so with K (lambda, nu) = (df/dq, 0)

    dE/dchi = q - lambda,      dE/dx = k d(u'A q)/dx,      u = q / 2 - lambda,      dE/dQ = nu - mu,

charges held. The two terms are -chi - J q of dE/dq. Without them K (lambda, nu) = (df/dq - chi - J q, 0) and dE/dchi =
-lambda; all else stays as it is. By an external potential, whose energy with the charges belongs to E in any case, the
derivative is q - lambda.
"""

import torch
from torch import Tensor

from ..ewald.forces import CoulombForces
from ..ewald.system import System
from .gradients import ChargeGradients
from .solvers import TOLERANCE, Memory, choose


class Equilibration:
    """Equilibration of structures that are no slabs and have no conditions but their total charge.

    What depends on cells and tables alone is made once; positions may move while the tables hold (``move``).

    Args:
        single: on CPUs, take the pair function and sums over waves in float32, good to some 1e-7 of charges and forces.
        others: see ``op.equilibrate``.

    Attributes:
        charges: (N,) e, of the last ``solve``.
        energy: (B,) (k / 2) q' A q, eV.
    """

    @torch.no_grad()
    def __init__(
        self,
        system: System,
        hardness: Tensor,
        constant: float,
        *,
        method: str = "auto",
        tolerance: float = TOLERANCE,
        single: bool = False,
    ):
        if system.has_slabs:
            raise ValueError("slabs need the derivatives of their constant; use op.equilibrate")
        self.system, self.hardness, self.constant = system, hardness, constant
        self.table = None
        if system.positions.device.type == "cpu":
            from ..ewald.pair_table import PairTable

            self.table = PairTable(system, torch.float32 if single else torch.float64)
        self.solver = choose(system, hardness, constant, method, tolerance, None, self.table)
        self.forces = CoulombForces(system, self.table, getattr(self.solver, "waves", None))

    @torch.no_grad()
    def move(self, positions: Tensor) -> None:
        """Atoms are at ``positions`` (N, 3) Å now."""
        self.system = self.system._replace(positions=positions)
        if self.table is not None:
            self.table.move(positions)
        self.solver.moved(self.system)

    @torch.no_grad()
    def solve(self, electronegativity: Tensor, total: Tensor, memory: Memory | None = None) -> None:
        """Find ``charges`` and ``energy``.

        Args:
            electronegativity: (N,) eV/e.
            total: (B,) e.
            memory: of the steps before, where this is one of many of the same atoms.

        Raises:
            SolverError: see ``op.equilibrate``.
        """
        self.electronegativity = electronegativity
        self.solver.begin(memory)
        self.charges, self.multiplier = self.solver(-electronegativity, total)
        self.energy = -0.5 * self.system.sum(self.charges * (electronegativity + self.hardness * self.charges))
        self.energy -= 0.5 * self.multiplier * total

    @torch.no_grad()
    def gradients(self, by_charge: Tensor, site_energy: bool) -> ChargeGradients:
        """Derivatives of E at the charges that ``solve`` has found.

        Args:
            by_charge: (N,) df/dq, eV/e.
            site_energy: whether chi'q + q'J q / 2 is part of E.
        """
        q, nothing = self.charges, torch.zeros_like(self.energy)
        rhs = by_charge
        if not site_energy:
            rhs = by_charge - self.electronegativity - self.hardness * q
        # its error is that of a force, and not larger where the adjoint itself is small
        adjoint, shift = self.solver(rhs, nothing, absolute=True)
        _, by_position, by_strain = self.forces(self.system.positions, q, 0.5 * q - adjoint, virial=True)
        response = q - adjoint
        return ChargeGradients(
            self.constant * by_position,
            self.constant * by_strain,
            response if site_energy else -adjoint,
            response,
            shift - self.multiplier,
        )
