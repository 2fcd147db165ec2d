"""Charge equilibration beside public packages: checked, then timed in turn.

The charges of 1,024 molecules at once (``molecules``) or of a cell of 1,000 atoms (``equilibration_cell``), and their
gradient. A contestant is a subclass of ``equilibration_peers.EquilibrationPeer``:
    ``name``, ``distribution``, ``module`` and ``obstacle(problem)``;
    ``__init__(problem)``: tables and lists; not timed;
    ``__call__(positions)``: charges (N,), differentiable by positions (N, 3); timed without and with the gradient of a
        random linear combination, for which one adjoint solve is enough;
    ``separable`` with ``prepare(positions)`` and ``solve(matrices)``: for methods that make matrices; the solution
        alone is timed, too. Others set ``separable = False``.
"""

import math
from collections.abc import Callable, Sequence

import ase.data
import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.numerics import relative_rms

from .electrostatics_fastlr import EQUILIBRATION
from .equilibration_peers import EQUILIBRATION_PEERS, Equilibration, EquilibrationPeer, bordered, molecular_matrix
from .peers import ours
from .point_charges import System
from .timing import alternate, over_each

TOLERANCE = 1e-4  # relative RMS error of charges, and of their gradient
CONTESTANTS = (*EQUILIBRATION_PEERS, *EQUILIBRATION)

# Electronegativity (eV/e) and hardness (eV/e^2): Rappe & Goddard, J. Phys. Chem. 95, 3358 (1991), Table 1.
ELEMENTS = {
    "H": (4.528, 13.890), "C": (5.343, 10.126), "N": (6.899, 11.760), "O": (8.741, 13.364),
    "Na": (2.843, 4.592), "Cl": (8.564, 9.892),
}  # fmt: skip


def molecules(count: int = 1024, smallest: int = 3, largest: int = 20) -> Equilibration:
    """Random molecules of H, C, N and O: each atom 1.0 to 1.6 Å from an earlier one, none nearer than 0.9 Å to any;
    charges of -1, 0 and +1. Electronegativities vary by 0.5 eV/e, as they do when a network predicts them."""
    rng = np.random.default_rng(0)
    symbols, positions, ptr = [], [], [0]
    for size in rng.integers(smallest, largest + 1, count):
        atoms = np.zeros((1, 3))
        while len(atoms) < size:
            direction = rng.normal(size=3)
            new = atoms[rng.integers(len(atoms))] + rng.uniform(1.0, 1.6) * direction / np.linalg.norm(direction)
            if np.linalg.norm(atoms - new, axis=1).min() > 0.9:
                atoms = np.vstack([atoms, new])
        symbols.extend(rng.choice(["H", "C", "N", "O"], size))
        positions.append(atoms)
        ptr.append(ptr[-1] + int(size))
    total = rng.integers(-1, 2, count)
    name = f"{count:,} molecules of {smallest} to {largest} atoms"
    return _equilibration(name, symbols, np.concatenate(positions), ptr, total, rng)


def equilibration_cell(repeat: int = 5) -> Equilibration:
    """8 ``repeat``^3 atoms of rattled NaCl, neutral; five cells along each axis give 1,000 atoms."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    rng, name = np.random.default_rng(0), f"NaCl, {len(atoms):,} atoms"
    cell = torch.tensor(atoms.cell.array)
    return _equilibration(name, atoms.symbols, atoms.positions, [0, len(atoms)], [0], rng, cell)


PROBLEMS = {"molecules": molecules, "cell": equilibration_cell}


def _equilibration(name, symbols, positions, ptr, total, rng, cell=None) -> Equilibration:
    chi, hardness = torch.tensor([ELEMENTS[symbol] for symbol in symbols], dtype=torch.float64).unbind(dim=1)
    widths = [ase.data.covalent_radii[ase.data.atomic_numbers[symbol]] for symbol in symbols]
    return Equilibration(
        name,
        torch.as_tensor(positions),
        torch.tensor(ptr),
        torch.as_tensor(np.asarray(total, float)),
        chi + torch.from_numpy(rng.normal(scale=0.5, size=len(chi))),
        hardness.contiguous(),
        torch.tensor(widths, dtype=torch.float64),
        cell,
    )


def exact_charges(problem: Equilibration, positions: Tensor) -> Tensor:
    """(N,) charges by dense solves in float64, one structure at a time; differentiable."""
    charges = []
    for structure, total in enumerate(problem.total):
        some = slice(*problem.ptr[structure : structure + 2].tolist())
        if problem.cell is None:
            matrix = molecular_matrix(positions[some], problem.widths[some], problem.hardness[some])
        else:
            matrix = periodic_matrix(problem, positions)
        rhs = torch.cat([-problem.chi[some], total[None]])
        charges.append(torch.linalg.solve(bordered(matrix, torch.ones_like(problem.chi[some])), rhs)[:-1])
    return torch.cat(charges)


def periodic_matrix(problem: Equilibration, positions: Tensor, accuracy: float = 1e-9) -> Tensor:
    """(N, N) k A + J of a cell by Ewald sums, up to what charges that sum to zero do not see."""
    reach = math.sqrt(-2.0 * math.log(accuracy))
    widest = math.sqrt(2.0) * float(problem.widths.max())
    eta = 0.75 * widest  # so that neither sum is long
    system = System("", problem.positions, problem.cell, problem.chi)
    i, j, shifts = system.neighbours(reach * widest, full=True)
    r = torch.linalg.vector_norm(positions[j] - positions[i] + shifts.double() @ problem.cell, dim=1)
    gamma = torch.sqrt(problem.widths[i] ** 2 + problem.widths[j] ** 2)
    near = (torch.erf(r / (math.sqrt(2.0) * gamma)) - torch.erf(r / (math.sqrt(2.0) * eta))) / r
    n = len(positions)
    matrix = positions.new_zeros(n * n).index_add(0, i * n + j, near).view(n, n)
    waves = system.waves(reach / eta)
    phase, square = positions @ waves.T, (waves**2).sum(dim=1)
    weight = 8.0 * math.pi / torch.linalg.det(problem.cell).abs() * torch.exp(-0.5 * eta**2 * square) / square
    for table in (phase.cos(), phase.sin()):
        matrix = matrix + (table * weight) @ table.T
    alone = 1.0 / (problem.widths * math.sqrt(math.pi)) - math.sqrt(2.0 / math.pi) / eta
    return COULOMB_CONSTANT * (matrix + torch.diag(alone)) + torch.diag(problem.hardness)


def run_equilibration(
    problem: Equilibration,
    *,
    contestants: Sequence[type[EquilibrationPeer]] = CONTESTANTS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = TOLERANCE,
    seconds: float = 10.0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict:
    """Check and time the contestants; the first that runs is what others are compared with.

    Phases: ``charges``; ``charges and gradient``, which adds the gradient of sum_i c_i q_i by positions for random c;
    and ``solve``, the charges from matrices made beforehand. A contestant whose charges or gradient miss the tolerance
    is reported and not timed.
    """
    probe = torch.randn(len(problem.chi), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def charges_and_gradient(function: Callable, dtype: torch.dtype, where: str) -> tuple[Tensor, Tensor]:
        positions = problem.positions.to(where, dtype, copy=True).requires_grad_(True)
        charges = function(positions)
        return charges.detach(), torch.autograd.grad((charges * probe.to(charges)).sum(), positions)[0]

    expected = charges_and_gradient(lambda positions: exact_charges(problem, positions), torch.float64, "cpu")
    running, absent, errors = {}, {}, {}
    for peer in contestants:
        if reason := peer.obstacle(problem):
            absent[peer.name] = reason
            say(f"  {peer.name}: left out, {reason}")
            continue
        contestant = peer(problem.to(dtype, device))
        found = charges_and_gradient(contestant, dtype, device)
        errors[peer.name] = {
            key: relative_rms(value.cpu(), reference)
            for key, value, reference in zip(("charges", "gradient"), found, expected, strict=True)
        }
        # written so that what is not a number is wrong, too
        if all(off <= tolerance for off in errors[peer.name].values()):
            running[peer.name] = contestant
        else:
            say(f"  {peer.name}: NOT TIMED, relative errors {errors[peer.name]}")

    positions = problem.positions.to(device, dtype)

    def without_gradient(function: Callable, *arguments) -> Callable:
        def call():
            with torch.no_grad():
                return function(*arguments)

        return call

    phases = {"charges": {name: without_gradient(peer, positions) for name, peer in running.items()}}
    phases["charges and gradient"] = {
        name: lambda peer=peer: charges_and_gradient(peer, dtype, device) for name, peer in running.items()
    }
    phases["solve"] = {
        name: without_gradient(peer.solve, without_gradient(peer.prepare, positions)())
        for name, peer in running.items()
        if peer.separable
    }
    times = {}
    for phase, runs in phases.items():
        if runs:
            times[phase] = alternate(runs, device, seconds, over_each=ours(runs))
            for name, row in times[phase].items():
                say(f"  {phase}, {name}: {row['ms']['median']:.3g} ms{over_each(row)}")
    return {
        "problem": f"charge equilibration, {problem.name}",
        "atoms": len(problem.chi),
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": tolerance,
        "left_out": absent,
        "versions": {peer.distribution: peer.version() for peer in contestants},
        "relative_errors": errors,
        "times": times,
    }
