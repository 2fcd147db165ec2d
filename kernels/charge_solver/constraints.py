"""More constraints than one sum a structure: charges of fragments, and electrodes whose potential is given.

Every solver knows one constraint, the sum of the charges of a structure. All else follows from solutions of that kind,
which are made once and serve every right-hand side. With S(f, Q) the charges and the multiplier of the right-hand
side f and the sum Q, (q, m) = S(f, Q) satisfy H q + m 1 = f and 1'q = Q. Then

* fragments g, the last of which is what the others leave: with (x_g, m_g) = S(-1_g, 0), the charges q + sum_g v_g x_g
  have the multipliers m + sum v_g m_g, and v_g more on fragment g; 1_g' q = Q_g gives v from a small symmetric system;
* a potential instead of a sum: with (e, m_e) = S(0, 1), the charges q - (m / m_e) e have the multiplier zero.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..ewald.system import System

Solver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Constraints(NamedTuple):
    """What is given beside the charge of each structure, for N atoms, G fragments and B structures.

    Attributes:
        fragment: (N,) int64, the fragment of each atom; those of a structure follow one another, in the order of the
            structures, and each has an atom. None for whole structures.
        fragment_charge: (G,) e; the charge of a structure is their sum.
        potential: (B,) the chemical potential dE/dQ in eV/e where it is given instead of a charge, which a molecule or
            a cell then takes up as it likes; NaN in all other structures. None where there is no such structure. A
            charged slab's potential has no zero, and a structure of several fragments cannot have one.
    """

    fragment: Tensor | None = None
    fragment_charge: Tensor | None = None
    potential: Tensor | None = None

    def on(self, solver: Solver, system: System) -> Solver:
        """A solver that keeps these constraints, from one that keeps the sum of each structure's charges.

        Raises:
            ValueError: the potential of a slab is given, or that of a structure of several fragments.
        """
        if self.potential is not None:
            is_free = ~self.potential.isnan()
            if system.has_slabs and bool(
                (is_free.index_select(0, system.tables.periodic) & (system.tables.height > 0)).any()
            ):
                raise ValueError("the potential of a charged slab has no zero; give its charge")
            solver = FreeCharge(solver, system, is_free)
        if self.fragment is None:
            return solver
        solver = Fragments(solver, system, self.fragment)
        if self.potential is not None and bool(is_free.index_select(0, solver.structure)[solver.slot > 0].any()):
            raise ValueError("a structure with several fragments needs their charges, not a potential")
        return solver


class Fragments:
    """Charges of fragments, from any solver. Called with rhs (N,) and the charges of the fragments (G,), it returns
    q (N,) and the multiplier of each fragment (G,).

    Attributes:
        structure: (G,) of each fragment.
        slot: (G,) its number in the structure, 1, 2, ..., and 0 for the last.
    """

    @torch.no_grad()
    def __init__(self, solver: Solver, system: System, fragment: Tensor):
        self.solver, self.system = solver, system
        num_fragments, device = int(fragment.max()) + 1 if len(fragment) else 0, fragment.device
        self.structure = fragment.new_zeros(num_fragments).index_copy(0, fragment, system.batch)
        counts = torch.bincount(self.structure, minlength=system.num_structures)
        number = torch.arange(1, num_fragments + 1, device=device) - (counts.cumsum(0) - counts)[self.structure]
        self.slot = torch.where(number == counts[self.structure], 0, number)
        slots = torch.arange(1, max(int(counts.max()) if len(counts) else 0, 1), device=device)
        self.members = (self.slot[fragment] == slots[:, None]).double()  # (F, N)
        nothing = self.members.new_zeros(system.num_structures)
        self.response = torch.zeros_like(self.members)
        self.shift = self.members.new_zeros(system.num_structures, len(slots))
        # a structure with fewer fragments has ones on the diagonal instead
        self.sums = torch.diag_embed((counts[:, None] <= slots).double())
        for k, row in enumerate(self.members):
            self.response[k], self.shift[:, k] = solver(-row, nothing)
            self.sums[:, :, k] += self._sums(self.response[k])

    def _sums(self, values: Tensor) -> Tensor:
        """(B, F) sums of (N,) over all fragments but the last."""
        out = values.new_zeros(self.system.num_structures, len(self.members))
        for k, row in enumerate(self.members):
            out[:, k] = self.system.sum(values * row)
        return out

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        num_structures = self.system.num_structures
        whole = total.new_zeros(num_structures).index_add(0, self.structure, total)
        q, multiplier = self.solver(rhs, whole)
        wanted = total.new_zeros(num_structures, len(self.members) + 1)
        wanted[self.structure, self.slot] = total  # column 0: of the last fragments
        amounts = torch.linalg.solve(self.sums, wanted[:, 1:] - self._sums(q))  # (B, F)
        q = q + (amounts.index_select(0, self.system.batch).T * self.response).sum(dim=0)
        common = multiplier + (amounts * self.shift).sum(dim=1)
        multipliers = torch.cat([common[:, None], common[:, None] + amounts], dim=1)
        return q, multipliers[self.structure, self.slot]


class FreeCharge:
    """Whatever charge the multiplier zero brings, in some structures; from any solver. Called with rhs (N,) and sums
    (B,), of which those of free structures have no meaning."""

    @torch.no_grad()
    def __init__(self, solver: Solver, system: System, is_free: Tensor):
        self.solver, self.system, self.is_free = solver, system, is_free
        self.unit, self.unit_multiplier = solver(torch.zeros_like(system.squared_widths), is_free.double())

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        q, multiplier = self.solver(rhs, torch.where(self.is_free, 0.0, total))
        amount = torch.where(self.is_free, -multiplier / torch.where(self.is_free, self.unit_multiplier, 1.0), 0.0)
        q = q + amount.index_select(0, self.system.batch) * self.unit
        return q, torch.where(self.is_free, 0.0, multiplier)
