"""fastlr's own sums and solvers behind the interfaces of the other contestants.

A user of fastlr sets one number, the accuracy; splitting width, cutoff, wave vectors and mesh follow from it. So the
contestants that users get have only this number tuned to the error of forces that all share. Others, "(tuned)", may
also choose the cutoff or the splitting width like everyone else; where they are faster, fastlr chooses badly.

fastlr computes in float64 throughout. In comparisons in float32 it takes float32 positions and returns float32 results,
with the same computation between.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from fastlr.kernels.charge_solver.batched_op import factorise, solve
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.charge_solver.solvers import LARGEST_SMALL, hessian
from fastlr.kernels.ewald import system as ewald
from fastlr.kernels.ewald.forces import CoulombForces
from fastlr.kernels.ewald.tables import CoulombTables, balanced_eta, coulomb_tables
from fastlr.kernels.ewald_mesh.errors import force_scale

from fastlr.constants import COULOMB_CONSTANT

from .coulomb_peers import CoulombPeer
from .equilibration_peers import Equilibration, EquilibrationPeer
from .point_charges import System

LADDER = tuple(10.0 ** (n / 12) for n in range(-16, 17))  # of accuracies, in units of the one that should serve


class _Fastlr(CoulombPeer):
    """Energy and forces of point charges. Its parameter is the ``accuracy``, and for experts the ``split``."""

    distribution = module = "fastlr"
    splits: tuple[float, ...] = ()

    def __init__(self, system: System, accuracy: float, split: float | None = None):
        device, n = system.positions.device, len(system.positions)
        positions, cell = (tensor.double().cpu().numpy() for tensor in (system.positions, system.cell))
        tables = self.tables(positions, cell, accuracy, split)
        periodic = ewald.System.of(
            torch.from_numpy(positions),
            torch.zeros(n, dtype=torch.float64),
            torch.from_numpy(cell)[None],
            torch.zeros(n, dtype=torch.int64),
            torch.tensor([0, n]),
            tables,
        )
        self.positions, self.charges = system.positions, system.charges.double()
        self.forces = CoulombForces(periodic.to(device))

    def tables(self, positions: np.ndarray, cell: np.ndarray, accuracy: float, split: float | None) -> CoulombTables:
        raise NotImplementedError

    def __call__(self):
        form, gradient, _ = self.forces(self.positions.double(), self.charges)
        energy, forces = 0.5 * COULOMB_CONSTANT * form.sum(), -0.5 * COULOMB_CONSTANT * gradient
        return energy.to(self.positions.dtype), forces.to(self.positions.dtype)

    @classmethod
    def resolutions(cls, system):
        return []

    @classmethod
    def suggestions(cls, system: System, accuracy: float) -> Iterator[dict]:
        own = _own_accuracy(system, accuracy)
        ladder = [step * own for step in LADDER if step * own < 0.1]
        yield from ({"accuracy": value} for value in ladder)
        for split in cls.splits:
            yield from ({"accuracy": value, "split": split} for value in ladder)

    @classmethod
    def safer(cls, parameters):
        return parameters | {"accuracy": parameters["accuracy"] / 1.1}


class FastlrEwald(_Fastlr):
    """Sums over explicit wave vectors. A ``split`` of 1.2 makes the splitting width 1.2 times fastlr's choice, which
    depends on the size of the system."""

    name = "fastlr Ewald"

    def tables(self, positions, cell, accuracy, split):
        eta = None if split is None else split * balanced_eta(abs(np.linalg.det(cell)), len(positions))
        return coulomb_tables(positions, cell, *_points(positions), accuracy, eta, mesh=False)


class FastlrEwaldTuned(FastlrEwald):
    """The same, whatever splitting width is the fastest."""

    name = "fastlr Ewald (tuned)"
    splits = (0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35, 1.5)


class FastlrMesh(_Fastlr):
    """Sums by the particle mesh. A ``split`` is a cutoff in real space, Å, in the place of fastlr's choice."""

    name = "fastlr mesh"

    def tables(self, positions, cell, accuracy, split):
        # the tables take a splitting width, and compute this cutoff from it
        eta = None if split is None else split / math.sqrt(-2.0 * math.log(accuracy))
        return coulomb_tables(positions, cell, *_points(positions), accuracy, eta, mesh=True)


class FastlrMeshTuned(FastlrMesh):
    """The same, whatever cutoff is the fastest."""

    name = "fastlr mesh (tuned)"
    splits = tuple(round(4.0 * 1.1**n, 2) for n in range(13))


def _own_accuracy(system: System, accuracy: float) -> float:
    """What fastlr calls the accuracy of which forces should have an RMS error of ``accuracy`` (eV/Å)."""
    n, volume = len(system.positions), float(torch.linalg.det(system.cell.double()).abs())
    return accuracy / (COULOMB_CONSTANT * force_scale(volume, n, float((system.charges.double() ** 2).sum())))


def _points(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Periodic directions, and widths of point charges."""
    return np.ones(3, bool), np.zeros(len(positions))


PRODUCTS = 12  # of the Coulomb matrix that charges and their adjoint take, at the tolerance below


class Fastlr(EquilibrationPeer):
    """``equilibrate`` for a batch of molecules, or for a cell, with the least accuracy that serves: charges of rock
    salt and their gradients are then accurate to 1e-4.

    Molecules have no cuts, and their matrices are factorised; cells of more than a few hundred atoms are iterated upon.

    Args:
        accuracy: of the Coulomb sums, as in a model's configuration.
        tolerance: bound on the root-mean-square error of charges found by iteration, e.
    """

    name = "fastlr"
    distribution = module = "fastlr"

    def __init__(self, problem: Equilibration, accuracy: float = 2e-5, tolerance: float = 3e-5):
        super().__init__(problem)
        device, problem = problem.positions.device, problem.to(torch.float64)  # tables are made on the CPU
        positions, widths = problem.positions, problem.widths
        bounds, sizes = problem.ptr.tolist(), problem.ptr.diff()
        pbc = np.full(3, problem.cell is not None)
        cell = torch.zeros(3, 3, dtype=torch.float64) if problem.cell is None else problem.cell
        tables = CoulombTables.join(
            [
                coulomb_tables(
                    positions[first:last].numpy(),
                    cell.numpy(),
                    pbc,
                    widths[first:last].numpy(),
                    accuracy,
                    products=PRODUCTS,
                )
                for first, last in pairwise(bounds)
            ]
        )
        self.system = ewald.System.of(
            positions,
            widths**2,
            cell.expand(len(sizes), 3, 3).contiguous(),
            torch.arange(len(sizes)).repeat_interleave(sizes),
            problem.ptr,
            tables,
        ).to(device)
        self.chi, self.hardness, self.total = (t.to(device) for t in (problem.chi, problem.hardness, problem.total))
        self.tolerance = tolerance
        self.separable = self.system.size <= LARGEST_SMALL

    def __call__(self, positions):
        system = self.system._replace(positions=positions.double())
        charges, _, _ = equilibrate(
            system, self.chi, self.hardness, self.total, COULOMB_CONSTANT, tolerance=self.tolerance
        )
        return charges.to(positions.dtype)

    def prepare(self, positions):
        return hessian(self.system._replace(positions=positions.double()), self.hardness, COULOMB_CONSTANT)

    def solve(self, prepared):
        factor = factorise(prepared, self.system.sizes)
        charges, _ = solve(factor, self.system.pad(-self.chi), self.total)
        return self.system.unpad(charges).to(self.problem.positions.dtype)


class FastlrDefault(Fastlr):
    """With the accuracy that models have unless they are told otherwise."""

    name = "fastlr (default accuracy)"

    def __init__(self, problem):
        super().__init__(problem, accuracy=1e-10, tolerance=1e-9)

    @classmethod
    def obstacle(cls, problem):
        return super().obstacle(problem) or (
            "the sums over molecules are not cut off" if problem.cell is None else None
        )


# the last of a comparison is the one that users get
COULOMB: tuple[type[CoulombPeer], ...] = (FastlrEwaldTuned, FastlrMeshTuned, FastlrEwald, FastlrMesh)
EQUILIBRATION: tuple[type[EquilibrationPeer], ...] = (FastlrDefault, Fastlr)
