"""Which solver serves a batch of structures: the cost model.

With n atoms, P entries in the pair list, K wave vectors, or a mesh of G points and splines of order p, one takes

    batched, dense    4 n^2 K operations for its matrix, n^3 / 3 to factorise it, and 2 n^2 for each right-hand side
    iterative         2 P + 8 n K, or 2 P + 4 p^3 n + 5 G log2 G, in each iteration of each right-hand side

and some 8 iterations at J = 0.3 a.u., 16 at 0.05 and 36 at 0.005, whatever n is. K grows with n, so that matrices cost
n^3. With 512 atoms of NaCl and wave vectors for 1e-10, one core took 77 ms for the matrix and 0.2 ms for a right-hand
side, and by iteration 7 ms and 14 ms; inference has two right-hand sides, training four. ``LARGEST_DENSE`` is about
where they break even. Small structures are solved in one launch, by kernels that are faster than LAPACK to 128 atoms.

On CPUs, where the pair function is at hand as a table, whole iterations run in one launch, too (``together.py``), and
512 atoms take 0.5 ms a right-hand side in float32. Then matrices are for molecules, and for batches of small cells,
whose launches would add up: more than ``FEW``.

Where charges of fragments are given, matrices are factorised by LAPACK, and all else is as it is for one sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald.coulomb import coulomb_matrix
from ..ewald.system import System
from .batched_op import Factor, charge_factorise, charge_solve
from .conjugate_gradient import TOLERANCE, ConjugateGradient
from .constraints import Fragments
from .definite import positive_definite
from .memory import Memory
from .naive import IndefiniteError, SolverError

if TYPE_CHECKING:
    from ..ewald.pair_table import PairTable

Solver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
METHODS = ("auto", "batched", "dense", "iterative", "one launch")
LARGEST_SMALL = 128  # atoms; what the batched kernels are for
LARGEST_DENSE = 400  # atoms; where factorisation and iteration take the same time on two CPU cores
FEW = 3  # cells
SINGLE = 3e-6  # eV/e; what float32 may leave of the equations, ten times what was seen, for charges of about one


def single_serves(hardness: Tensor, tolerance: float) -> bool:
    """Whether sums in float32 leave charges within the tolerance: their error is at most what is left over min J."""
    return not len(hardness) or tolerance * float(hardness.min()) >= SINGLE


def choose(
    system: System,
    hardness: Tensor,
    constant: float,
    method: str = "auto",
    tolerance: float = TOLERANCE,
    memory: Memory | None = None,
    table: PairTable | None = None,
    fragments: Fragments | None = None,
) -> Solver:
    """A solver of H q + C m = rhs, C'q = total for every structure of the batch: from rhs (N,) and sums (B,) or, of
    fragments, (G,) to charges (N,) and multipliers (B,) or (G,).

    Args:
        method: "batched" kernels, "dense" LAPACK, "iterative" conjugate gradients, on CPUs those in "one launch", or
            "auto" by size.
        tolerance: bound on the root-mean-square error of the charges, e, for those found by iteration.
        memory: where iterations start from, and what they leave.
        table: the pair function, if that is known, on CPUs; iterations take its precision.
        fragments: those whose sums are given, if it is not the sums of the structures.

    Raises:
        SolverError: the energy of a structure has no minimum; here, or when the solver is called.
        ValueError: an unknown method, or one that cannot serve so many atoms.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; there are {', '.join(METHODS)}")
    if _all_at_once(system, method, table is not None):
        if _factorised(system.size, method, fragments is not None) == "batched":
            return Small(system, hardness, constant, table)
        return Dense(system, hardness, constant, table, fragments)
    return OneByOne(system, hardness, constant, method, tolerance, memory, table, fragments)


def _factorised(size: int, method: str, has_fragments: bool) -> str:
    """How matrices are factorised."""
    if has_fragments:
        return "dense"
    return ("batched" if size <= LARGEST_SMALL else "dense") if method == "auto" else method


def _all_at_once(system: System, method: str, has_table: bool) -> bool:
    """Whether all structures are solved together, by factorised matrices."""
    large = system.size > LARGEST_DENSE
    if has_table and len(system.tables.periodic):
        large = system.size > LARGEST_SMALL or system.num_structures <= FEW
    return method in ("batched", "dense") or (method == "auto" and not large)


def selected(system: System, method: str = "auto", has_table: bool = False, has_fragments: bool = False) -> list[str]:
    """The solver that ``choose`` takes for each structure, one of ``METHODS``; empty structures have a factorised one.

    Args:
        has_table: whether the pair function is known.
        has_fragments: whether charges of fragments are given.
    """
    sizes = system.sizes.tolist()
    if _all_at_once(system, method, has_table):
        return [_factorised(system.size, method, has_fragments)] * len(sizes)
    meshes = dict(zip(system.tables.periodic.tolist(), system.tables.mesh.any(dim=1).tolist(), strict=True))
    on_cpu = system.positions.device.type == "cpu"
    has_table |= on_cpu and not system.has_meshes and (system.size > LARGEST_DENSE or method == "one launch")
    return [
        _selected_one(n, b in meshes, meshes.get(b, False), method, has_table, has_fragments)
        for b, n in enumerate(sizes)
    ]


def _selected_one(size: int, in_cell: bool, on_mesh: bool, method: str, has_table: bool, has_fragments: bool) -> str:
    if has_table and size and not on_mesh and (in_cell or size > LARGEST_DENSE or method == "one launch"):
        return "one launch"
    if size > LARGEST_DENSE or (method in ("iterative", "one launch") and size):
        return "iterative"
    return _factorised(size, "auto", has_fragments)


def hessian(system: System, hardness: Tensor, constant: float, table: PairTable | None = None) -> Tensor:
    """H (B, n, n), padded with zeros."""
    matrix = coulomb_matrix(system, table).mul_(constant)
    matrix.diagonal(dim1=1, dim2=2).add_(system.pad(hardness))
    return matrix


class Factorised:
    """Matrices and their factors, made anew where atoms move."""

    @torch.no_grad()
    def __init__(
        self,
        system: System,
        hardness: Tensor,
        constant: float,
        table: PairTable | None = None,
        fragments: Fragments | None = None,
    ):
        self.others, self.fragments = (hardness, constant, table), fragments
        self.moved(system)

    def begin(self, memory: Memory | None) -> None:
        """Nothing is to be remembered: solutions are exact."""

    @torch.no_grad()
    def moved(self, system: System) -> None:
        """Atoms have moved, and the table knows."""
        self.system = system
        self.factorise(hessian(system, *self.others))


class Small(Factorised):
    """All structures in one launch, by the batched kernels."""

    def factorise(self, matrix: Tensor) -> None:
        sizes = self.system.sizes
        self.factor = Factor(*charge_factorise.function(matrix, sizes), sizes)

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
        charges, multiplier = charge_solve.function(self.factor, self.system.pad(rhs), total)
        return self.system.unpad(charges), multiplier


class Dense(Factorised):
    """Matrices factorised by LAPACK.

    With X = H^-1 C, the equations leave C'X m = C'H^-1 rhs - total for the multipliers m, and q = H^-1 rhs - X m.
    """

    def factorise(self, matrix: Tensor) -> None:
        system = self.system
        ones = system.pad(torch.ones_like(self.others[0]))
        matrix.diagonal(dim1=1, dim2=2).add_(1.0 - ones)
        self.factor, info = torch.linalg.cholesky_ex(matrix)
        definite = positive_definite(self.factor, info)
        if not bool(definite.all()):
            raise IndefiniteError(torch.nonzero(~definite).flatten().tolist())
        self.members = ones[:, :, None] if self.fragments is None else self.fragments.members(system)
        self.response = torch.cholesky_solve(self.members, self.factor)
        self.present = (self.members.sum(dim=1) > 0.0).to(ones.dtype)
        own = self.members.transpose(1, 2) @ self.response + torch.diag_embed(1.0 - self.present)
        self.stiffness, _ = torch.linalg.cholesky_ex(own)  # of a positive definite matrix

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
        free = torch.cholesky_solve(self.system.pad(rhs)[:, :, None], self.factor)
        excess = (self.members.transpose(1, 2) @ free).squeeze(2) - self._by_structure(total)
        multiplier = torch.cholesky_solve((excess * self.present)[:, :, None], self.stiffness)
        charges = self.system.unpad((free - self.response @ multiplier).squeeze(2))
        return charges, self._by_fragment(multiplier.squeeze(2))

    def _by_structure(self, values: Tensor) -> Tensor:
        """(B,) or (G,) to (B, F)."""
        if self.fragments is None:
            return values[:, None]
        out = values.new_zeros(self.present.shape)
        out[self.fragments.structure, self.fragments.slot] = values
        return out

    def _by_fragment(self, values: Tensor) -> Tensor:
        """The inverse of ``_by_structure``."""
        if self.fragments is None:
            return values[:, 0]
        return values[self.fragments.structure, self.fragments.slot]


class OneByOne:
    """Each structure by itself: conjugate gradients for large ones, or for all."""

    @torch.no_grad()
    def __init__(
        self,
        system: System,
        hardness: Tensor,
        constant: float,
        method: str = "auto",
        tolerance: float = TOLERANCE,
        memory: Memory | None = None,
        table: PairTable | None = None,
        fragments: Fragments | None = None,
    ):
        self.ptr, self.solvers, self.waves = system.node_ptr.tolist(), [], {}
        self.fragments = fragments
        # where the sums of each structure begin
        self.bounds = list(range(system.num_structures + 1)) if fragments is None else fragments.bounds
        kinds = selected(system, method, table is not None, fragments is not None)
        if table is None and "one launch" in kinds:
            from ..ewald.pair_table import PairTable

            table = PairTable(system, torch.float32 if single_serves(hardness, tolerance) else torch.float64)
        self.table = table
        self.begin(memory)
        for b, kind in enumerate(kinds):
            alone, own = system.select(b), hardness[self.ptr[b] : self.ptr[b + 1]]
            known = None if table is None else table.select(b, alone)
            self.solvers.append(self._named(b, self._solver, b, kind, alone, own, constant, tolerance, known))

    def _solver(self, b: int, kind: str, alone: System, hardness: Tensor, constant: float, tolerance: float, table):
        if kind == "one launch":
            from ..ewald.wave_table import WaveTable
            from .together import Together

            if len(alone.tables.periodic):
                self.waves[b] = WaveTable(alone, table.dtype)
            return Together(alone, hardness, constant, tolerance, table, self.waves.get(b), self._own(b))
        if kind == "iterative":
            return ConjugateGradient(alone, hardness, constant, tolerance, table, self._own(b))
        if kind == "batched":
            return Small(alone, hardness, constant, table)
        own = self._own(b)
        return Dense(alone, hardness, constant, table, None if own is None else Fragments(alone, own[0]))

    def _own(self, b: int) -> tuple[Tensor, int] | None:
        """The fragments of the atoms of a structure and their number, if there are several."""
        if self.fragments is None or self.bounds[b + 1] - self.bounds[b] < 2:
            return None
        return self.fragments.of(b)

    def begin(self, memory: Memory | None) -> None:
        """The solves of a step follow; they start from what ``memory`` tells."""
        self.memory, self.calls = memory, 0

    @torch.no_grad()
    def moved(self, system: System) -> None:
        """Atoms have moved, and the table knows."""
        for b, solver in enumerate(self.solvers):
            self._named(b, solver.moved, system.select(b))

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
        """The solution; ``absolute`` takes the tolerance of iterations as it is, however small the solution."""
        charges, multipliers = [], []
        for b, solver in enumerate(self.solvers):
            own, sums = slice(self.ptr[b], self.ptr[b + 1]), slice(self.bounds[b], self.bounds[b + 1])
            if sums.start == sums.stop:  # no atoms, and no fragment
                continue
            q, multiplier = self._solved(b, solver, rhs[own], total[sums], absolute)
            charges.append(q)
            multipliers.append(multiplier)
        self.calls += 1
        return torch.cat([rhs[:0], *charges]), torch.cat([total[:0], *multipliers])

    def _solved(self, b: int, solver: Solver, rhs: Tensor, total: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
        key = b, self.calls
        start = None if self.memory is None else self.memory.guess(key, rhs)
        if isinstance(solver, Factorised):
            return self._named(b, solver, rhs, total)
        solution = self._named(b, solver, rhs, total, start, absolute)
        if self.memory is None:
            return solution
        self.memory.keep(key, solution[0], solver.report)
        return solution

    @staticmethod
    def _named(b: int, function, *arguments):
        """Errors of one structure name it by its place in the batch."""
        try:
            return function(*arguments)
        except SolverError as error:
            raise type(error)([b], error.reason) from None
