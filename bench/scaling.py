"""How the charge solver's time grows with the number of atoms: one cell of rattled NaCl after another.

Gaussian charges as wide as the covalent radii, electronegativities at random, one hardness for all. Solutions start
from nothing. Tables are made beforehand, once a system, as in dynamics; their time and size are reported beside.

What is timed is checked first: of small systems the charges by a dense solve of their own, and of all the forces, along
a random direction, by differences of the energy.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ase.data
import numpy as np
import torch
from ase.build import bulk
from fastlr.kernels.charge_solver.memory import Memory
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT, HARTREE
from fastlr.numerics import relative_rms

from .equilibration import exact_charges
from .equilibration_peers import Equilibration
from .timing import peak_bytes, summary, take_turns

REPEATS = (5, 8, 12, 17, 24)  # conventional cells along each axis: 1,000 to 110,592 atoms
LARGE = 10_000  # atoms from which on times are fitted by a power
LARGEST_DENSE = 1_000  # atoms of which charges are compared with those of a dense solve
TOLERANCE = 1e-8  # e, bound on the root-mean-square error of charges
PHASES = ("charges", "charges, energy and forces")  # what is timed
MISSED = 1e-4  # relative error from which on a result is wrong
STEP = 1e-3  # Å, of differences of the energy


@dataclass(frozen=True, eq=False)
class Crystal:
    """Gaussian charges in a cell, ready to be equilibrated.

    Attributes:
        system: positions, widths and tables.
        chi: (N,) electronegativities, eV/e.
        hardness: (N,) J, eV/e^2.
        tolerance: bound on the root-mean-square error of charges, e.
        table_seconds: the time that tables took.
    """

    system: System
    chi: Tensor
    hardness: Tensor
    tolerance: float
    table_seconds: float

    def solve(self, positions: Tensor, memory: Memory | None = None) -> tuple[Tensor, Tensor]:
        """Charges (N,), and energy in eV; differentiable."""
        total, system = self.chi.new_zeros(1), self.system._replace(positions=positions)
        options = {"method": "iterative", "tolerance": self.tolerance, "memory": memory}
        charges, energy, _ = equilibrate(system, self.chi, self.hardness, total, COULOMB_CONSTANT, **options)
        return charges, energy.sum()

    @torch.no_grad()
    def charges(self) -> Tensor:
        """(N,) e."""
        return self.solve(self.system.positions)[0]

    def forces(self, memory: Memory | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Charges, energy and forces (N, 3) in eV/Å: one solve for the charges, and one for the adjoint."""
        positions = self.system.positions.clone().requires_grad_(True)
        charges, energy = self.solve(positions, memory)
        (gradient,) = torch.autograd.grad(energy, positions)
        return charges.detach(), energy.detach(), -gradient

    def run(self, phase: str) -> Callable:
        """The function that does one of ``PHASES``."""
        return dict(zip(PHASES, (self.charges, self.forces), strict=True))[phase]

    @property
    def table_bytes(self) -> int:
        """Memory of the tables."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.system.tables)


# of the Coulomb matrix that the charges and their adjoint take
PRODUCTS = 20


def crystal(repeat: int, hardness: float, tolerance: float = TOLERANCE) -> Crystal:
    """8 ``repeat``^3 atoms; ``hardness`` in atomic units. Coulomb sums are as accurate as the charges."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    n, widths = len(atoms), ase.data.covalent_radii[atoms.numbers]
    start = time.perf_counter()
    tables = coulomb_tables(atoms.positions, atoms.cell.array, np.ones(3, bool), widths, tolerance, products=PRODUCTS)
    seconds = time.perf_counter() - start
    system = System.of(
        torch.from_numpy(atoms.positions),
        torch.from_numpy(widths) ** 2,
        torch.from_numpy(atoms.cell.array)[None],
        torch.zeros(n, dtype=torch.int64),
        torch.tensor([0, n]),
        tables,
    )
    chi = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Crystal(system, chi, torch.full_like(chi, hardness * HARTREE), tolerance, seconds)


def errors(problem: Crystal, charges: Tensor, forces: Tensor) -> dict[str, float]:
    """Relative errors: of charges, if a dense solve is within reach, and of the forces along a random direction."""
    system, found = problem.system, {}
    if system.size <= LARGEST_DENSE:
        dense = Equilibration(
            "", system.positions, system.node_ptr, charges.new_zeros(1), problem.chi, problem.hardness,
            system.squared_widths.sqrt(), system.cell[0],
        )  # fmt: skip
        found["charges"] = relative_rms(charges, exact_charges(dense, system.positions))
    direction = torch.randn(forces.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        after, before = (float(problem.solve(system.positions + h * direction)[1]) for h in (STEP, -STEP))
    expected, along = (before - after) / (2.0 * STEP), float((forces * direction).sum())
    # beside what is typical along a direction: along this one, forces may happen to be small
    found["forces"] = abs(along - expected) / float(torch.linalg.vector_norm(forces))
    return found


def check_size(
    repeat: int, hardness: float = 0.3, *, tolerance: float = TOLERANCE, say: Callable[[str], None] = print
) -> tuple[Crystal | None, dict]:
    """A crystal, or None if its result is wrong, and what there is to say of it before it is timed."""
    problem = crystal(repeat, hardness, tolerance)
    memory = Memory()
    charges, _, forces = problem.forces(memory)
    off = errors(problem, charges, forces)
    reports = dict(zip(("charges", "adjoint"), (memory.reports[0, call] for call in (0, 1)), strict=True))
    result = {
        "problem": f"NaCl, {len(charges):,} atoms, J = {hardness:g} a.u.",
        "atoms": len(charges),
        "hardness_au": hardness,
        "charge_tolerance": tolerance,
        "table_seconds": problem.table_seconds,
        "table_bytes": problem.table_bytes,
        "entries": len(problem.system.tables.neighbour),
        "mesh": problem.system.tables.mesh[0].tolist(),
        "iterations": {name: report.iterations for name, report in reports.items()},
        "relative_errors": off,
        "peak_bytes": {},
        "times": {},
    }
    iterations = " and ".join(f"{number} for the {name}" for name, number in result["iterations"].items())
    say(f"{result['problem']}: iterations: {iterations}; relative errors {off}")
    # written so that what is not a number is wrong, too
    if not all(value <= MISSED for value in off.values()):
        say("  NOT TIMED")
        return None, result
    for phase in PHASES:
        result["peak_bytes"][phase] = peak_bytes(problem.run(phase))
    return problem, result


def exponent(times: dict[int, list[float]]) -> dict | None:
    """b of time ~ N^b: median and quartiles of the exponents of all rounds, each by least squares of the logarithms.

    Args:
        times: by number of atoms, for each round, in turn with the other sizes. Those below ``LARGE`` do not count.

    Returns:
        None for fewer than two sizes.
    """
    large = {atoms: rounds for atoms, rounds in times.items() if atoms >= LARGE}
    if len(large) < 2:
        return None
    sizes = [math.log(atoms) for atoms in large]
    slopes, _ = np.polyfit(sizes, np.log(list(large.values())), 1)
    return summary(slopes.tolist())


def run_scaling(
    repeats: Sequence[int] = REPEATS,
    hardnesses: Sequence[float] = (0.3,),
    *,
    tolerance: float = TOLERANCE,
    seconds: float = 10.0,
    rounds: int = 7,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """One result a size and hardness, and after those of a hardness one with the fitted exponents and no times.

    All sizes are timed in turn, so that a machine that slows down or recovers does so for all of them.

    Args:
        seconds: for each size and phase; there are at least ``rounds`` rounds.
    """
    results = []
    for hardness in hardnesses:
        checked = [check_size(repeat, hardness, tolerance=tolerance, say=say) for repeat in repeats]
        right = [(problem, result) for problem, result in checked if problem is not None]
        fitted = {}
        for phase in PHASES:
            contestants = {result["problem"]: problem.run(phase) for problem, result in right}
            times = take_turns(contestants, seconds=seconds * len(right), rounds=rounds)
            for _, result in right:
                found = times[result["problem"]]
                row = {"ms": summary([1e3 * value for value in found]), "rounds": len(found)}
                result["times"][phase] = {"fastlr": row}
                mebibytes = (result["peak_bytes"][phase] or 0) / 2**20
                say(f"{result['problem']}, {phase}: {row['ms']['median'] / 1e3:.3g} s, {mebibytes:.0f} MiB")
            fitted[phase] = exponent({result["atoms"]: times[result["problem"]] for _, result in right})
            if fitted[phase] is not None:
                low, high = fitted[phase]["quartiles"]
                say(
                    f"J = {hardness:g} a.u., {phase}: time ~ N^{fitted[phase]['median']:.2f} from {LARGE:,} atoms on "
                    f"(quartiles {low:.2f} and {high:.2f})"
                )
        closing = {
            "problem": f"NaCl, J = {hardness:g} a.u.",
            "fitted_from_atoms": LARGE,
            "exponents": fitted,
            "times": {},
        }
        results.extend([*(result for _, result in checked), closing])
    return results
