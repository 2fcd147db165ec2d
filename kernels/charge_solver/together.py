"""Conjugate gradients for one structure of middling size, by explicit sums and in one launch on CPUs.

Pairs and phases of wave vectors are computed once for the positions of the atoms, and an iteration is some products of
small matrices (``ewald.wave_parts``) between barriers (``together_cpu.py``): no mesh, and no launch an operation. The
preconditioner is that of ``preconditioner.py`` with its waves summed explicitly, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cores import count
from ..ewald.pair_table import PairTable
from ..ewald.system import System
from ..ewald.wave_parts import LINES, THIRDS, row_length
from ..ewald.wave_table import WaveTable
from ..native import Call, machine_code
from .conjugate_gradient import MAX_ITERATIONS, Report, exhausted, has_converged, target_of
from .constraints import Sums
from .error_bound import ErrorBound
from .naive import IndefiniteError
from .preconditioner import diagonal, explicit_filter, load
from .together_cpu import BLOCKS, EXHAUSTED, INDEFINITE, NARROW_ROWS, NUMBERS, ROWS, SCALARS, SLOTS, TENSORS, Iterations

TERMS_OF_A_THREAD = 200_000


class Together:
    """Solves H q + C m = rhs, C'q = total for one structure whose Coulomb sum goes over wave vectors, or none.

    Args:
        system: one structure, on the CPU.
        hardness: (n,) J in eV/e^2.
        constant: k, eV Å.
        tolerance: see ``conjugate_gradient.ConjugateGradient``.
        pairs: its pair function.
        waves: its wave vectors, or None.
        fragments: see ``conjugate_gradient.ConjugateGradient``.

    Attributes:
        report: of the last solve.
    """

    @torch.no_grad()
    def __init__(
        self,
        system: System,
        hardness: Tensor,
        constant: float,
        tolerance: float,
        pairs: PairTable,
        waves: WaveTable | None,
        fragments: tuple[Tensor, int] | None = None,
    ):
        n = len(hardness)
        self.num_atoms, self.least, self.tolerance, self.report = n, float(hardness.min()), tolerance, None
        self.pairs, self.waves = pairs, waves
        sums = [table.rows() for table in (pairs, waves) if table is not None]
        self.bound = ErrorBound(system, hardness, constant, sums)
        stride, tiles, thirds = (row_length(n), 0, 0) if waves is None else waves.sizes
        rows = {name: torch.zeros(stride, dtype=torch.float64) for name in ROWS}
        rows |= {name: torch.zeros(stride, dtype=pairs.dtype) for name in NARROW_ROWS}
        rows["inside"][:n] = 1.0
        rows["hardness"][:n] = constant * system.self_terms() + hardness
        rows["widths"][:n] = system.squared_widths
        empty = torch.zeros(0, dtype=pairs.dtype)
        tables = dict.fromkeys(("line", "third", "both", "apart", "near_both", "near_apart", "coefficients"), empty)
        nothing = torch.zeros(0, dtype=torch.int64)
        tables |= {"extent": nothing, "near_extent": nothing}
        average = squared_eta = 0.0
        if waves is None:
            rows["root"][:n] = (hardness + constant * system.self_terms()).rsqrt()
        else:
            width, own = diagonal(system, hardness, constant)
            rows["root"][:n] = own.rsqrt()
            filters = explicit_filter(system, waves, width, constant, load(system, 1.0 / own))
            tables |= {name: getattr(waves, name) for name in ("line", "third", "both", "apart", "extent")}
            extent = waves.extent_of(filters)
            last = torch.nonzero(extent)[-1:].flatten().tolist()  # the first lines have the long waves
            tables["near_extent"] = extent[: last[0] + 1] if last else nothing
            tables["near_both"] = waves.padded(filters[:, 0] + filters[:, 1])
            tables["near_apart"] = waves.padded(filters[:, 0] - filters[:, 1])
            tables["coefficients"] = torch.zeros(tiles * LINES, 2, 2 * thirds, dtype=pairs.dtype)
            squared_eta = waves.squared_eta
            if not bool(system.tables.height[0] > 0.0):
                average = 2.0 * math.pi / float(torch.linalg.det(system.lattice()[0]).abs())
        # terms of a product; fewer than some 1e5 are not worth another thread, which all would wait for
        work = len(pairs.pairs.neighbour) + 4 * n * int(tables["extent"].sum()) * LINES * THIRDS
        self.threads = max(1, min(count(), work // TERMS_OF_A_THREAD))
        self.sums = Sums(rows["root"][:n].square(), *(fragments or ()))
        tensors = {**rows, **tables, **_fragment_tables(self.sums, stride, fragments)}
        tensors |= {"values": pairs.values, "ptr": pairs.pairs.ptr, "neighbour": pairs.pairs.neighbour}
        tensors |= {"sums": torch.zeros(BLOCKS, SLOTS, dtype=torch.float64)}
        near = len(tables["near_extent"])
        tensors["numbers"] = torch.tensor([stride, n, tiles, thirds, near, 0, MAX_ITERATIONS, self.sums.count])
        tensors["scalars"] = torch.zeros(len(SCALARS), dtype=torch.float64)
        kernel = machine_code(Iterations, pairs.dtype, int(fragments is not None))
        self._call = Call(kernel, [tensors[name] for name in TENSORS])
        self.q, self.r, self.d = (rows[name][:n] for name in ("q", "r", "d"))
        self.multipliers = tensors["multipliers"] if fragments is not None else None
        # the same memory for numpy, whose functions take a fraction of PyTorch's time where there is little to do
        self._numbers, self._scalars = tensors["numbers"].numpy(), tensors["scalars"].numpy()
        whole = float(self.sums.weights.sum())
        self._set(constant=constant, average=average, squared_eta=squared_eta, weights=whole)
        self.moved(system)

    def moved(self, system: System) -> None:
        """Atoms have moved, and the pair table knows."""
        if self.waves is not None:
            self.waves.move(system.positions)

    def _set(self, **scalars: float) -> None:
        for name, value in scalars.items():
            self._scalars[SCALARS.index(name)] = value

    def _run(self, has_start: bool, target: float, multiplier: Tensor) -> dict[str, float]:
        self._numbers[NUMBERS.index("has_start")] = has_start
        if self.multipliers is None:
            self._set(target=target, multiplier=float(multiplier))
        else:
            self._set(target=target)
            self.multipliers.copy_(multiplier)
        self._call.together(self.threads)
        return dict(zip(SCALARS, self._scalars.tolist(), strict=True))

    @torch.no_grad()
    def __call__(
        self, rhs: Tensor, total: Tensor, start: Tensor | None = None, absolute: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See ``ConjugateGradient``."""
        n, sums = self.num_atoms, self.sums
        level, totals = sums.level(rhs), total.tolist()
        torch.sub(rhs, sums.each(level), out=self.r)
        has_start = start is not None or any(totals)
        self.d.copy_(start) if start is not None else self.d.zero_()
        if has_start:
            sums.complete(self.d, total)
        spread, largest = float(torch.linalg.vector_norm(self.r)), float(rhs.abs().max())
        target, floor = target_of(spread, largest, n, sum(map(abs, totals)), self.least, self.tolerance, absolute)
        found = self._run(has_start, target, level)
        if found["status"] == INDEFINITE and not has_converged(found["norm"], floor):
            raise IndefiniteError([0])
        if found["status"] == EXHAUSTED:
            raise exhausted(found["norm"] / self.least / math.sqrt(n), self.tolerance)
        q, norm = self.q.clone(), sums.norm_of_rest(self.r, found["norm"])
        bound = self.bound(norm + floor, q, sum(totals), start)
        self.report = Report(int(found["iterations"]), bound, norm / self.least / math.sqrt(n))
        if self.multipliers is not None:
            return q, self.multipliers.clone()
        return q, torch.tensor([found["multiplier"]], dtype=torch.float64)


def _fragment_tables(sums: Sums, stride: int, fragments: tuple[Tensor, int] | None) -> dict[str, Tensor]:
    """What the kernel knows of fragments; atoms beyond a row's last are of the first one, with the weight zero."""
    whole, numbers = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    if fragments is None:
        names = ("fragment_weights", "shifts", "levels", "multipliers")
        return dict.fromkeys(("fragment", "members", "fragment_ptr"), numbers) | dict.fromkeys(names, whole)
    fragment, count = fragments
    ends = torch.bincount(fragment, minlength=count).cumsum(0)
    return {
        "fragment": torch.nn.functional.pad(fragment, (0, stride - len(fragment))),
        "members": fragment.argsort(stable=True),
        "fragment_ptr": torch.nn.functional.pad(ends, (1, 0)),
        "fragment_weights": sums.weights,
        **{name: torch.zeros_like(sums.weights) for name in ("shifts", "levels", "multipliers")},
    }
