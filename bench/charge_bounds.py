"""Whether charges are as near to the exact ones as is said of them: random structures by every solver, seed by seed.

A seed stands for a structure, its parameters, a float type and a way to its charges. The exact charges are those of the
specification in float64, with Coulomb sums at an accuracy of 1e-15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from fastlr.kernels.charge_solver import naive
from fastlr.kernels.charge_solver.conjugate_gradient import ConjugateGradient, Report
from fastlr.kernels.charge_solver.constraints import Constraints, Fragments
from fastlr.kernels.charge_solver.direct import Equilibration
from fastlr.kernels.charge_solver.memory import Memory
from fastlr.kernels.charge_solver.naive import SolverError
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.charge_solver.together import Together
from fastlr.kernels.ewald.pair_table import PairTable
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.kernels.ewald.wave_table import WaveTable
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.engine.steps import Steps
from fastlr.models import build_model, parse_config
from fastlr.potential import Potential

EXACT = 1e-15
SPECIES = ("H", "O", "Na", "Cl")
KINDS = ("molecule", "slab", "cell", "skewed cell", "droplet", "crystal", "rattled crystal")
WAYS = ("operations", "one launch", "particle mesh", "engine", "differentiable", "predict", "steps")
LATTICES = (
    ("NaCl", "rocksalt", 5.64), ("NaCl", "cesiumchloride", 3.4), ("NaCl", "zincblende", 5.9), ("Na", "bcc", 3.9),
    ("Na", "fcc", 4.9), ("Na", "diamond", 6.8), ("OH", "rocksalt", 4.2),
)  # fmt: skip
MODEL = {
    "kind": "nequip-lr", "species": list(SPECIES), "r_max": 3.0, "num_layers": 1, "num_features": 4, "l_max": 1,
    "radial_width": 4, "num_bessels": 3, "type_embedding_features": 2, "avg_num_neighbors": 8.0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A structure with parameters for each of its atoms, and how its charges are to be found."""

    seed: int
    kind: str
    way: str
    dtype: torch.dtype
    atoms: Atoms
    widths: np.ndarray  # Å, by species
    hardness: np.ndarray  # eV/e^2, by species
    shifts: np.ndarray  # eV/e, by species
    chi: Tensor  # (n,) eV/e
    total: float  # e
    accuracy: float
    tolerance: float
    fragment: np.ndarray | None  # (n,), where charges of fragments are given
    fragment_charge: np.ndarray | None  # e

    @property
    def species(self) -> np.ndarray:
        return np.array([SPECIES.index(symbol) for symbol in self.atoms.symbols])

    @property
    def atoms_hardness(self) -> Tensor:
        return torch.from_numpy(self.hardness[self.species])

    def system(self, accuracy: float, mesh: bool | None = False, products: int = 0) -> System:
        """The Gaussian charges with sums at an accuracy."""
        atoms, widths = self.atoms, self.widths[self.species]
        tables = coulomb_tables(
            atoms.positions, atoms.cell.complete().array, atoms.pbc, widths, accuracy, mesh=mesh, products=products
        )
        n = len(atoms)
        return System.of(
            torch.from_numpy(atoms.positions.copy()), torch.from_numpy(widths**2),
            torch.from_numpy(atoms.cell.complete().array)[None], torch.zeros(n, dtype=torch.int64),
            torch.tensor([0, n]), tables,
        )  # fmt: skip

    def exact(self, chi: Tensor | None = None) -> Tensor:
        """(n,) e, of electronegativities (n,)."""
        chi = self.chi if chi is None else chi
        total, system = torch.tensor([self.total], dtype=torch.float64), self.system(EXACT)
        others = self.atoms_hardness, total, COULOMB_CONSTANT, self.constraints
        return naive.equilibrate(system, chi, *others)[0]

    @property
    def constraints(self) -> Constraints | None:
        if self.fragment is None:
            return None
        return Constraints(torch.from_numpy(self.fragment), torch.from_numpy(self.fragment_charge))

    @property
    def totals(self) -> Tensor:
        """The sums that are given, e."""
        if self.fragment is not None:
            return torch.from_numpy(self.fragment_charge)
        return torch.tensor([self.total], dtype=torch.float64)

    def fragments(self, system: System) -> tuple[Tensor, int] | None:
        """As a solver of one structure takes them."""
        return None if self.fragment is None else Fragments(system, torch.from_numpy(self.fragment)).of(0)

    def stated(self) -> Atoms:
        """The structure with its charges, as a user states them."""
        atoms = self.atoms.copy()
        if self.fragment is None:
            atoms.info["charge"] = self.total
        else:
            atoms.set_array("fragment", self.fragment)
            atoms.info["fragment_charge"] = self.fragment_charge
        return atoms


def case(seed: int, largest: int = 800) -> Case:
    """The case of a seed, with at most so many atoms."""
    rng = np.random.default_rng(seed)
    kind, way = KINDS[seed % len(KINDS)], WAYS[seed // len(KINDS) % len(WAYS)]
    if way == "particle mesh" and kind in ("molecule", "slab"):
        way = "operations"
    atoms = structure(rng, kind, largest)
    widths = np.full(4, rng.uniform(0.3, 1.7)) if rng.random() < 0.3 else rng.uniform(0.3, 1.7, 4)
    softest = np.exp(rng.uniform(np.log(0.5), np.log(20.0)))
    hardness = np.minimum(softest * np.exp(rng.uniform(0.0, 2.0, 4)), 20.0)
    size = np.exp(rng.uniform(np.log(0.3), np.log(30.0)))
    shifts = size * rng.uniform(-1.0, 1.0, 4)
    noise = rng.normal(size=len(atoms)) * size * rng.choice([0.0, 1e-6, 0.1, 1.0])
    chi = (shifts[[SPECIES.index(symbol) for symbol in atoms.symbols]] + noise).clip(-30.0, 30.0)
    dtype = rng.choice([torch.float32, torch.float64])
    accuracy, tolerance = 10.0 ** rng.uniform(-11.0, -4.0), 10.0 ** rng.uniform(-10.0, -5.0)
    total = float(rng.choice([0.0, rng.integers(-2, 3), rng.uniform(-2.0, 2.0)]))
    fragment = fragment_charge = None
    if way != "engine" and rng.random() < 0.2:
        labels = rng.permutation(len(atoms)) // int(rng.integers(1, 9))
        fragment = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        fragment_charge = rng.choice([0.0, 0.5]) * rng.normal(size=fragment.max() + 1)
        total = float(fragment_charge.sum())
    return Case(
        seed, kind, way, dtype, atoms, widths, hardness, shifts, torch.from_numpy(chi), total, accuracy, tolerance,
        fragment, fragment_charge,
    )  # fmt: skip


def structure(rng: np.random.Generator, kind: str, largest: int) -> Atoms:
    """Random atoms no nearer than 0.8 Å, at 0.01 to 0.12 an Å^3, or a crystal."""
    if "crystal" in kind:
        return _crystal(rng, largest, 0.2 * rng.random() if kind == "rattled crystal" else 0.0)
    count = int(np.exp(rng.uniform(np.log(2), np.log(largest + 0.9))))
    density = np.exp(rng.uniform(np.log(0.01), np.log(0.12)))
    skew = 0.35 if kind == "skewed cell" else 0.0
    shape = np.eye(3) + skew * rng.uniform(-1.0, 1.0, (3, 3))
    if rng.random() < 0.3:
        shape *= np.array([0.7, 1.0, 1.4])[:, None]
    cell = shape * (count / density / abs(np.linalg.det(shape))) ** (1.0 / 3.0)
    positions = _apart(rng, count, cell, kind)
    if kind == "droplet":
        cell = cell * rng.uniform(1.2, 2.5)
    pbc = {"molecule": False, "slab": (True, True, False)}.get(kind, True)
    if kind == "slab":
        pbc = np.roll(pbc, rng.integers(3))
    return Atoms(rng.choice(SPECIES, len(positions)), positions, cell=cell, pbc=pbc)


def _apart(rng: np.random.Generator, count: int, cell: np.ndarray, kind: str) -> np.ndarray:
    """At most so many places in a cell, and 0.8 Å from each other's images."""
    inverse, kept = np.linalg.inv(cell), np.zeros((0, 3))
    for fractions in rng.uniform(0.0, 1.0, (20 * count, 3)):
        apart = kept @ inverse - fractions
        apart -= 0.0 if kind == "molecule" else np.round(apart)
        if not len(kept) or np.linalg.norm(apart @ cell, axis=1).min() > 0.8:
            kept = np.concatenate([kept, fractions[None] @ cell])
        if len(kept) == count:
            break
    return kept


def _crystal(rng: np.random.Generator, largest: int, displaced: float) -> Atoms:
    name, lattice, constant = LATTICES[rng.integers(len(LATTICES))]
    if name == "OH":
        atoms = bulk("NaCl", lattice, a=constant, cubic=True)
        atoms.symbols = ["O" if symbol == "Cl" else "H" for symbol in atoms.symbols]
    else:
        atoms = bulk(name, lattice, a=constant, cubic=bool(rng.integers(2)))
    most = max(1, int((largest / len(atoms)) ** (1.0 / 3.0)))
    atoms = atoms.repeat([int(rng.integers(1, most + 1)) for _ in range(3)])
    atoms.positions += rng.uniform(0.0, 1.0, 3) + displaced * rng.normal(size=atoms.positions.shape)
    return atoms


# --- ways to the charges: each gives charges (n,), the electronegativities, and a report or None ---


def _operations(problem: Case) -> tuple[Tensor, Tensor, Report]:
    return _iterated(problem, problem.system(problem.accuracy))


def _one_launch(problem: Case) -> tuple[Tensor, Tensor, Report]:
    system, dtype = problem.system(problem.accuracy), problem.dtype
    waves = WaveTable(system, dtype) if len(system.tables.periodic) else None
    others = problem.tolerance, PairTable(system, dtype), waves, problem.fragments(system)
    return _solved(problem, Together(system, problem.atoms_hardness, COULOMB_CONSTANT, *others))


def _particle_mesh(problem: Case) -> tuple[Tensor, Tensor, Report]:
    return _iterated(problem, problem.system(problem.accuracy, True))


def _iterated(problem: Case, system: System) -> tuple[Tensor, Tensor, Report]:
    others = problem.tolerance, PairTable(system, problem.dtype), problem.fragments(system)
    return _solved(problem, ConjugateGradient(system, problem.atoms_hardness, COULOMB_CONSTANT, *others))


def _solved(problem: Case, solver) -> tuple[Tensor, Tensor, Report]:
    charges, _ = solver(-problem.chi, problem.totals)
    return charges, problem.chi, solver.report


def _engine(problem: Case) -> tuple[Tensor, Tensor, Report | None]:
    """As inference does it, and once more from the solution before; slabs by the differentiable operation."""
    if problem.kind == "slab":
        return _differentiable(problem)
    system, memory = problem.system(problem.accuracy, None, 12), Memory()
    solver = Equilibration(
        system, problem.atoms_hardness, COULOMB_CONSTANT, tolerance=problem.tolerance,
        single=problem.dtype == torch.float32,
    )  # fmt: skip
    for _ in range(2):
        solver.solve(problem.chi, problem.totals, memory)
    return solver.charges, problem.chi, memory.reports.get((0, 0))


def _differentiable(problem: Case) -> tuple[Tensor, Tensor, Report | None]:
    memory, method = Memory(), "iterative" if problem.seed % 2 else "auto"
    options = {"method": method, "tolerance": problem.tolerance, "memory": memory}
    options["constraints"] = problem.constraints
    system, total = problem.system(problem.accuracy, None), torch.tensor([problem.total], dtype=torch.float64)
    with torch.no_grad():
        charges, _, _ = equilibrate(system, problem.chi, problem.atoms_hardness, total, COULOMB_CONSTANT, **options)
    return charges, problem.chi, memory.reports.get((0, 0))


def _predict(problem: Case) -> tuple[Tensor, Tensor, Report | None]:
    return _of(_potential(problem).predict(problem.stated()))


def _steps(problem: Case) -> tuple[Tensor, Tensor, Report | None]:
    """The last of three steps, with lists that were made for the first."""
    steps, rng, last = Steps(_potential(problem)), np.random.default_rng(problem.seed), problem.stated()
    for size in (0.1, 0.05, 0.0):
        atoms = last.copy()
        atoms.positions += size * rng.uniform(-1.0, 1.0, atoms.positions.shape) / np.sqrt(3.0)
        found = steps.predict(atoms)
    return _of(found)


def _of(found) -> tuple[Tensor, Tensor, Report | None]:
    return torch.from_numpy(found.charges), torch.from_numpy(found.electronegativities), found.charge_solution


def _potential(problem: Case) -> Potential:
    """A small random model with the parameters of a case."""
    torch.manual_seed(problem.seed)
    by_species = {
        name: dict(zip(SPECIES, values.tolist(), strict=True))
        for name, values in (
            ("hardness", problem.hardness), ("electronegativity_shifts", problem.shifts),
            ("gaussian_widths", problem.widths),
        )
    }  # fmt: skip
    config = MODEL | by_species | {"dtype": str(problem.dtype).removeprefix("torch.")}
    return Potential(build_model(parse_config(config)))


RUN: dict[str, Callable] = dict(
    zip(WAYS, (_operations, _one_launch, _particle_mesh, _engine, _differentiable, _predict, _steps), strict=True)
)


def check(problem: Case) -> dict:
    """Root-mean-square error of the charges of a case, and the bound that is reported (None where there is none), e; no
    error of charges that a solver refuses to give."""
    row = {"seed": problem.seed, "kind": problem.kind, "way": problem.way, "dtype": str(problem.dtype)[6:]}
    row |= {"atoms": len(problem.atoms), "fragments": 0 if problem.fragment is None else len(problem.fragment_charge)}
    try:
        charges, chi, report = RUN[problem.way](problem)
    except SolverError as error:
        return row | {"refused": str(error)}
    error = float((charges - problem.exact(chi)).square().mean().sqrt())
    return row | {"error": error, "bound": None if report is None else report.error_bound}


def bounds(seeds: Iterable[int] = range(1000), largest: int = 800, say: Callable[[str], None] = print) -> dict:
    """How many bounds hold, and how much larger than the errors they are."""
    rows = [check(case(seed, largest)) for seed in seeds]
    stated = [row for row in rows if row.get("bound") is not None]
    broken = [row for row in stated if not row["error"] <= row["bound"]]
    for row in broken:
        say(f"broken: {row}")
    found = {}
    for way in WAYS:
        own = [row["bound"] / max(row["error"], 1e-300) for row in stated if row["way"] == way]
        if own:
            found[way] = {"bounds": len(own), "median_over_error": median(own), "least_over_error": min(own)}
            say(f"{way}: {len(own)} bounds, {median(own):.1f} times the error in the median, {min(own):.2f} at least")
    refused = sum("refused" in row for row in rows)
    direct = len(rows) - len(stated) - refused
    say(f"{len(stated) - len(broken)} of {len(stated)} bounds hold; {direct} solved directly, {refused} refused")
    tightest = sorted(stated, key=lambda row: row["bound"] / max(row["error"], 1e-300))[:10]
    over = median(row["bound"] / max(row["error"], 1e-300) for row in stated)
    return {
        "problem": f"bounds of charges, {len(rows)} seeds", "stated": len(stated), "broken": len(broken),
        "refused": refused,
        "median_over_error": over, "by_way": found, "tightest": tightest, "times": {},
    }  # fmt: skip
