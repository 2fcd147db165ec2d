"""Conjugate gradients for one structure of middling size, by explicit sums and in one launch on CPUs.

Pairs and phases of wave vectors are computed once for the positions of the atoms, and an iteration is some products of
small matrices (``ewald.wave_parts``) between barriers (``together_cpu.py``): no mesh, and no launch an operation. The
preconditioner is that of ``preconditioner.py`` with its waves summed explicitly, too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..cores import count
from ..ewald.pair_table import PairTable
from ..ewald.system import System
from ..ewald.wave_parts import LINES, THIRDS, row_length
from ..ewald.wave_table import WaveTable
from ..native import Call, machine_code
from .conjugate_gradient import MAX_ITERATIONS, Report, exhausted, has_converged, target_of
from .error_bound import ErrorBound
from .naive import IndefiniteError
from .preconditioner import diagonal, explicit_filter
from .together_cpu import BLOCKS, EXHAUSTED, INDEFINITE, NARROW_ROWS, NUMBERS, ROWS, SCALARS, SLOTS, TENSORS, Iterations

TERMS_OF_A_THREAD = 2_000_000


class Together:
    """Solves K (q, mu) = (rhs, total) for one structure whose Coulomb sum goes over wave vectors, or none.

    Args:
        system: one structure, on the CPU.
        hardness: (n,) J in eV/e^2.
        constant: k, eV Å.
        tolerance: see ``conjugate_gradient.ConjugateGradient``.
        pairs: its pair function.
        waves: its wave vectors, or None.

    Attributes:
        reports: one a solve.
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
    ):
        n = len(hardness)
        self.num_atoms, self.least, self.tolerance, self.reports = n, float(hardness.min()), tolerance, []
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
            filters = explicit_filter(system, waves, width, constant, float((1.0 / own).sum()))
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
        self.numbers = torch.tensor([stride, n, tiles, thirds, len(tables["near_extent"]), 0, MAX_ITERATIONS])
        self.scalars = torch.zeros(len(SCALARS), dtype=torch.float64)
        tensors = {**rows, **tables, "values": pairs.values, "ptr": pairs.pairs.ptr, "neighbour": pairs.pairs.neighbour}
        tensors |= {"sums": torch.zeros(BLOCKS, SLOTS, dtype=torch.float64)}
        tensors |= {"numbers": self.numbers, "scalars": self.scalars}
        self._call = Call(machine_code(Iterations, pairs.dtype), [tensors[name] for name in TENSORS])
        # the same memory for numpy, whose functions take a fraction of PyTorch's time where there is little to do
        self._rows = {name: rows[name].numpy()[:n] for name in ("q", "r", "d", "root")}
        self._numbers, self._scalars = self.numbers.numpy(), self.scalars.numpy()
        weights = self._rows["root"] ** 2
        self._shares = weights / weights.sum()
        self._set(constant=constant, average=average, squared_eta=squared_eta, weights=float(weights.sum()))
        self.moved(system)

    def moved(self, system: System) -> None:
        """Atoms have moved, and the pair table knows."""
        if self.waves is not None:
            self.waves.move(system.positions)

    def _set(self, **scalars: float) -> None:
        for name, value in scalars.items():
            self._scalars[SCALARS.index(name)] = value

    def _run(self, has_start: bool, target: float, multiplier: float) -> dict[str, float]:
        self._numbers[NUMBERS.index("has_start")] = has_start
        self._set(target=target, multiplier=multiplier)
        self._call.together(self.threads)
        return dict(zip(SCALARS, self._scalars.tolist(), strict=True))

    @torch.no_grad()
    @np.errstate(invalid="ignore")  # numbers that are none are seen by their norm
    def __call__(
        self, rhs: Tensor, total: Tensor, start: Tensor | None = None, absolute: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See ``ConjugateGradient``."""
        n, charge = self.num_atoms, float(total)
        given, r, d = rhs.numpy(), self._rows["r"], self._rows["d"]
        level = float(self._shares @ given)
        np.subtract(given, level, out=r)
        if start is None:
            d.fill(charge / n)
        else:
            before = start.numpy()
            np.add(before, (charge - before.sum()) / n, out=d)
        spread, largest = math.sqrt(float(r @ r)), float(np.abs(given).max())
        target, floor = target_of(spread, largest, n, charge, self.least, self.tolerance, absolute)
        found = self._run(start is not None or charge != 0.0, target, level)
        if found["status"] == INDEFINITE and not has_converged(found["norm"], floor):
            raise IndefiniteError([0])
        if found["status"] == EXHAUSTED:
            raise exhausted(found["norm"] / self.least / math.sqrt(n), self.tolerance)
        q, rest = torch.from_numpy(self._rows["q"].copy()), r - r.mean()
        norm = math.sqrt(float(rest @ rest))
        bound, unfinished = self.bound(norm + floor, q, charge, start), norm / self.least / math.sqrt(n)
        self.reports.append(Report(int(found["iterations"]), bound, unfinished))
        return q, torch.tensor([found["multiplier"]], dtype=torch.float64)
