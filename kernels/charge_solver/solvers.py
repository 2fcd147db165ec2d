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
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald.coulomb import coulomb_matrix
from ..ewald.system import System
from .batched_op import factorise, solve
from .conjugate_gradient import TOLERANCE, ConjugateGradient
from .constraints import Solver
from .definite import positive_definite
from .memory import Memory
from .naive import IndefiniteError, SolverError

if TYPE_CHECKING:
    from ..ewald.pair_table import PairTable

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
) -> Solver:
    """A solver of K (q, mu) = (rhs, total) for every structure of the batch.

    Args:
        method: "batched" kernels, "dense" LAPACK, "iterative" conjugate gradients, on CPUs those in "one launch", or
            "auto" by size.
        tolerance: bound on the root-mean-square error of the charges, e, for those found by iteration.
        memory: where iterations start from, and what they leave.
        table: the pair function, if that is known, on CPUs; iterations take its precision.

    Raises:
        SolverError: the energy of a structure has no minimum; here, or when the solver is called.
        ValueError: an unknown method, or one that cannot serve so many atoms.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; there are {', '.join(METHODS)}")
    if _all_at_once(system, method, table is not None):
        if method == "auto":
            method = "batched" if system.size <= LARGEST_SMALL else "dense"
        return (Small if method == "batched" else Dense)(system, hardness, constant, table)
    return OneByOne(system, hardness, constant, method, tolerance, memory, table)


def _all_at_once(system: System, method: str, has_table: bool) -> bool:
    """Whether all structures are solved together, by factorised matrices."""
    large = system.size > LARGEST_DENSE
    if has_table and len(system.tables.periodic):
        large = system.size > LARGEST_SMALL or system.num_structures <= FEW
    return method in ("batched", "dense") or (method == "auto" and not large)


def selected(system: System, method: str = "auto", has_table: bool = False) -> list[str]:
    """The solver that ``choose`` takes for each structure, one of ``METHODS``; empty structures have a "batched" one.

    Args:
        has_table: whether the pair function is known.
    """
    sizes = system.sizes.tolist()
    if _all_at_once(system, method, has_table):
        found = "batched" if system.size <= LARGEST_SMALL else "dense"
        return [found if method == "auto" else method] * len(sizes)
    meshes = dict(zip(system.tables.periodic.tolist(), system.tables.mesh.any(dim=1).tolist(), strict=True))
    on_cpu = system.positions.device.type == "cpu"
    has_table |= on_cpu and not system.has_meshes and (system.size > LARGEST_DENSE or method == "one launch")
    return [_selected_one(n, b in meshes, meshes.get(b, False), method, has_table) for b, n in enumerate(sizes)]


def _selected_one(size: int, in_cell: bool, on_mesh: bool, method: str, has_table: bool) -> str:
    if has_table and size and not on_mesh and (in_cell or size > LARGEST_DENSE or method == "one launch"):
        return "one launch"
    if size > LARGEST_DENSE or (method in ("iterative", "one launch") and size):
        return "iterative"
    return "batched" if size <= LARGEST_SMALL else "dense"


def hessian(system: System, hardness: Tensor, constant: float, table: PairTable | None = None) -> Tensor:
    """H (B, n, n), padded with zeros."""
    matrix = coulomb_matrix(system, table).mul_(constant)
    matrix.diagonal(dim1=1, dim2=2).add_(system.pad(hardness))
    return matrix


class Factorised:
    """Matrices and their factors, made anew where atoms move."""

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float, table: PairTable | None = None):
        self.others = hardness, constant, table
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
        self.factor = factorise(matrix, self.system.sizes)

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
        charges, multiplier = solve(self.factor, self.system.pad(rhs), total)
        return self.system.unpad(charges), multiplier


class Dense(Factorised):
    """Matrices factorised by LAPACK."""

    def factorise(self, matrix: Tensor) -> None:
        ones = self.system.pad(torch.ones_like(self.others[0]))
        matrix.diagonal(dim1=1, dim2=2).add_(1.0 - ones)
        self.factor, info = torch.linalg.cholesky_ex(matrix)
        definite = positive_definite(self.factor, info)
        if not bool(definite.all()):
            raise IndefiniteError(torch.nonzero(~definite).flatten().tolist())
        self.response = torch.cholesky_solve(ones[:, :, None], self.factor).squeeze(2)  # H^-1 1
        self.stiffness = 1.0 / self.response.sum(dim=1).clamp_min(1e-300)

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
        free = torch.cholesky_solve(self.system.pad(rhs)[:, :, None], self.factor).squeeze(2)
        multiplier = (free.sum(dim=1) - total) * self.stiffness
        return self.system.unpad(free - multiplier[:, None] * self.response), multiplier


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
    ):
        self.ptr, self.solvers, self.waves = system.node_ptr.tolist(), [], {}
        kinds = selected(system, method, table is not None)
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
            return Together(alone, hardness, constant, tolerance, table, self.waves.get(b))
        if kind == "iterative":
            return ConjugateGradient(alone, hardness, constant, tolerance, table)
        return (Small if kind == "batched" else Dense)(alone, hardness, constant, table)

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
            own = slice(self.ptr[b], self.ptr[b + 1])
            q, multiplier = self._solved(b, solver, rhs[own], total[b : b + 1], absolute)
            charges.append(q)
            multipliers.append(multiplier)
        self.calls += 1
        return torch.cat(charges), torch.cat(multipliers)

    def _solved(self, b: int, solver: Solver, rhs: Tensor, total: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
        key = b, self.calls
        start = None if self.memory is None else self.memory.guess(key, rhs)
        if isinstance(solver, Factorised):
            return self._named(b, solver, rhs, total)
        solution = self._named(b, solver, rhs, total, start, absolute)
        if self.memory is None:
            return solution
        self.memory.keep(key, solution[0], solver.reports[-1])
        return solution

    @staticmethod
    def _named(b: int, function, *arguments):
        """Errors of one structure name it by its place in the batch."""
        try:
            return function(*arguments)
        except SolverError as error:
            raise type(error)([b], error.reason) from None
