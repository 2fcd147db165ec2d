"""What drives charges apart in a perfect crystal is rounding: iterations end there, and still refuse what is wrong."""

import pytest
import torch
from ase.build import bulk
from fastlr.kernels.charge_solver import batched_op
from fastlr.kernels.charge_solver.conjugate_gradient import ROUNDING, ConjugateGradient
from fastlr.kernels.charge_solver.naive import IndefiniteError
from fastlr.kernels.charge_solver.solvers import Dense, hessian
from fastlr.kernels.charge_solver.together import Together
from fastlr.kernels.charge_solver.together_cpu import TENSORS
from fastlr.kernels.ewald.pair_table import PairTable
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.kernels.ewald.wave_table import WaveTable
from reference.coulomb_systems import CELL, MOLECULE, SLAB, joined

K = 14.399645478  # eV Å
LEVEL = 12.4  # eV/e, all atoms' electronegativity
CRYSTALS = {
    "bcc": bulk("Na", "bcc", a=4.29, cubic=True).repeat(2),
    "fcc": bulk("Na", "fcc", a=5.3).repeat(3),
    "diamond": bulk("Na", "diamond", a=7.3).repeat(2),
    "hcp": bulk("Na", "hcp", a=3.77, c=6.15).repeat(2),
    "two atoms": bulk("Na", "bcc", a=4.29, cubic=True),
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6}
SPREADS = [0.0, 1e-17, 1e-16, 1e-15, 3e-15, 1e-14, 1e-13, 1e-12, 1e-8, 1e-4]  # eV/e


def crystal(name: str, pbc):
    atoms = CRYSTALS[name]
    widths = torch.full((len(atoms),), 1.66, dtype=torch.float64).numpy()
    tables = coulomb_tables(atoms.positions, atoms.cell.array, torch.tensor(pbc).bool().numpy(), widths, 1e-10)
    hardness = torch.full((len(atoms),), 8.1, dtype=torch.float64)
    return joined([atoms.positions], [widths], [atoms.cell.array], [tables]), hardness


def solver_of(kind, system, hardness):
    if kind == "operations":
        return ConjugateGradient(system, hardness, K, TOLERANCE[torch.float64])
    waves = WaveTable(system, kind) if len(system.tables.periodic) else None
    return Together(system, hardness, K, TOLERANCE[kind], PairTable(system, kind), waves)


@pytest.mark.parametrize("kind", ["operations", *TOLERANCE])
@pytest.mark.parametrize("pbc", [MOLECULE, SLAB, CELL], ids=["molecule", "slab", "cell"])
@pytest.mark.parametrize("name", CRYSTALS)
def test_any_spread(name, pbc, kind, rng):
    """From nothing to rounding to displaced atoms, from nothing and from the solution."""
    system, hardness = crystal(name, pbc)
    solver, dense = solver_of(kind, system, hardness), Dense(system, hardness, K)
    pattern = torch.from_numpy(rng.normal(size=len(hardness)))
    for spread in SPREADS:
        for total in (0.0, 1.0):
            rhs, sums = LEVEL + spread * pattern, torch.tensor([total], dtype=torch.float64)
            expected, multiplier = dense(rhs, sums)
            for start in (None, expected, expected + 1e-15 * pattern):
                found, level = solver(rhs, sums, start)
                assert float((found - expected).square().mean().sqrt()) <= TOLERANCE.get(kind, 1e-11), (spread, total)
                assert float(level - multiplier) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_spread_on_gpus(dtype, device, rng):
    system, hardness = crystal("bcc", CELL)
    place = "cpu" if device == "interpreter" else device
    factor = batched_op.factorise(hessian(system, hardness, K).to(place, dtype), system.sizes.to(place))
    pattern = torch.from_numpy(rng.normal(size=(1, len(hardness))))
    for spread in SPREADS[::2]:
        rhs, nothing = LEVEL + spread * pattern, torch.zeros(1, dtype=dtype, device=place)
        found, _ = batched_op.solve(factor, rhs.to(place, dtype), nothing)
        assert float(found.abs().max()) <= spread + 1e-6


@pytest.mark.parametrize("kind", ["operations", *TOLERANCE])
def test_curvature_at_the_floor(kind, rng):
    """A negative one is rounding there, and a missing minimum where the residual is larger."""
    system, hardness = crystal("bcc", CELL)
    solver = solver_of(kind, system, hardness)
    if kind == "operations":
        solver.hessian = torch.neg
    else:
        solver._call.tensors[TENSORS.index("hardness")].fill_(-300.0)
    pattern = torch.from_numpy(rng.normal(size=len(hardness)))
    pattern -= pattern.mean()
    nothing = torch.zeros(1, dtype=torch.float64)
    floor = ROUNDING * LEVEL / float(pattern.square().mean().sqrt())
    for multiple in (0.3, 3.0):
        found, _ = solver(LEVEL + multiple * floor * pattern, nothing)
        assert float(found.abs().max()) < 1e-12
    for spread in (100.0 * floor, 1e-9, 1e-2):
        with pytest.raises(IndefiniteError):
            solver(LEVEL + spread * pattern, nothing)


@pytest.mark.parametrize("kind", ["operations", *TOLERANCE])
def test_numbers_that_are_none_are_refused_in_crystals(kind):
    system, hardness = crystal("bcc", CELL)
    solver, rhs = solver_of(kind, system, hardness), torch.full_like(hardness, LEVEL)
    rhs[3] = torch.nan
    with pytest.raises(IndefiniteError):
        solver(rhs, torch.zeros(1, dtype=torch.float64))
