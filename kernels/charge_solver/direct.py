"""Charges and their part of energy gradients without autograd: for inference, where only few gradients are wanted.

With q from K (q, mu) = (-chi, Q) (see ``naive.py``) and a function f of the charges that a model goes on with, the
energy is E = chi'q + q'J q / 2 + k q'A q / 2 + f(q), or without the first two terms. At the charges the first three
are stationary, so with K (lambda, nu) = (df/dq, 0)

    dE/dchi = q - lambda,      dE/dx = k d(u'A q)/dx,      u = q / 2 - lambda,

charges held; without the two terms, which are -chi - J q less in dE/dq, K (lambda, nu) = (df/dq - chi - J q, 0) and
dE/dchi = -lambda.
"""

import torch
from torch import Tensor

from ..ewald.forces import CoulombForces
from ..ewald.system import System
from .solvers import TOLERANCE, Memory, choose


class Equilibration:
    """Charges of structures that are no slabs and have no conditions but their total charge.

    Args:
        single: on CPUs, take the pair function in float32, good to some 1e-7 of charges and forces.
        others: see ``op.equilibrate``.

    Attributes:
        charges: (N,) e.
        energy: (B,) (k / 2) q' A q, eV.
    """

    @torch.no_grad()
    def __init__(
        self,
        system: System,
        electronegativity: Tensor,
        hardness: Tensor,
        total: Tensor,
        constant: float,
        *,
        method: str = "auto",
        tolerance: float = TOLERANCE,
        memory: Memory | None = None,
        single: bool = False,
    ):
        if system.has_slabs:
            raise ValueError("slabs need the derivatives of their constant; use op.equilibrate")
        self.system, self.constant = system, constant
        self.electronegativity, self.hardness = electronegativity, hardness
        self.table = None
        if single and system.positions.device.type == "cpu":
            from ..ewald.pair_table import PairTable

            self.table = PairTable(system, torch.float32)
        self.solver = choose(system, hardness, constant, method, tolerance, memory, self.table)
        self.charges, multiplier = self.solver(-electronegativity, total)
        self.energy = -0.5 * system.sum(self.charges * (electronegativity + hardness * self.charges))
        self.energy -= 0.5 * multiplier * total

    @torch.no_grad()
    def gradients(self, by_charge: Tensor, site_energy: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of E.

        Args:
            by_charge: (N,) df/dq, eV/e.
            site_energy: whether chi'q + q'J q / 2 is part of E.

        Returns:
            by positions (N, 3), by the strain of each structure (B, 3, 3), by electronegativities (N,).
        """
        q, nothing = self.charges, torch.zeros_like(self.energy)
        rhs = by_charge
        if not site_energy:
            rhs = by_charge - self.electronegativity - self.hardness * q
        # its error is that of a force, and not larger where the adjoint itself is small
        adjoint, _ = self.solver(rhs, nothing, absolute=True)
        forces = CoulombForces(self.system, self.table)
        _, by_position, by_strain = forces(self.system.positions, q, 0.5 * q - adjoint, virial=True)
        by_chi = q - adjoint if site_energy else -adjoint
        return self.constant * by_position, self.constant * by_strain, by_chi
