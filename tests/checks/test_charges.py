"""Regimes of charge equilibration: each right, and each refused if it is not."""

from itertools import product

import numpy as np
import pytest
import torch
from ase.build import bulk
from reference import structures
from reference.models import small_model

from fastlr import Potential
from fastlr.checks import charges
from fastlr.checks.charges import PERIODIC, TOLERANCE, Regime, proven_error
from fastlr.engine import parts
from fastlr.errors import BackendError
from fastlr.memory import Counts

SOLVERS = "batched", "dense", "iterative", "one launch"
REGIMES = [
    Regime(solver, kind, on_mesh, by_autograd)
    for solver, kind, on_mesh, by_autograd in product(SOLVERS, PERIODIC, (False, True), (False, True))
    if (not on_mesh or (kind == "cell" and solver == "iterative")) and (kind != "slab" or by_autograd)
]
REGIMES += [
    regime._replace(has_fragments=True) for regime in REGIMES if regime.by_autograd and regime.solver != "batched"
]
MESH, ONE_LAUNCH = (Regime(*kind, False) for kind in (("iterative", "cell", True), ("one launch", "cell", False)))
# Where a fast result of the charges is made, and a regime that it is made for
FAULTS = {
    "charge_solver.batched_cpu.solve": Regime("batched", "molecule", False, False),
    "ewald.pair_table.PairTable.pull": ONE_LAUNCH,
    "charge_solver.together.Together.__call__": ONE_LAUNCH,
    "ewald_mesh.cpu.Stencils.gather": MESH,
    "ewald_mesh.cpu.gather": MESH,
    "ewald_mesh.potential.filtered": MESH,
    "ewald.pair_table.PairTable.product": MESH,
    "charge_solver.conjugate_gradient.ConjugateGradient.__call__": MESH,
    "charge_solver.op.coulomb_form": Regime("batched", "slab", False, True),
    "ewald.matrix_cpu.phases": Regime("dense", "cell", False, True),
    "charge_solver.solvers.Dense.__call__": Regime("dense", "molecule", False, True, True),
    "charge_solver.constraints.Sums.of": Regime("one launch", "molecule", False, True, True),
}


def ions():
    """Rattled rock salt, so many that the long waves go by a particle mesh."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (9, 9, 9)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.fixture(autouse=True)
def unproven():
    proven_error.cache_clear()
    yield
    proven_error.cache_clear()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("regime", REGIMES, ids=str)
def test_every_regime_is_right(regime, dtype):
    """By far: what is asked leaves room for other machines."""
    assert proven_error(regime, "cpu", dtype) < 0.1 * TOLERANCE[dtype]


def spoiled(function):
    """Results of charges off by one per mille."""

    def wrong(*arguments, **options):
        found = function(*arguments, **options)
        if isinstance(found, torch.Tensor):
            return found * 1.001
        return type(found)(value * 1.001 for value in found)

    return wrong


def spoil(monkeypatch, path: str) -> None:
    module, *names = path.rsplit(".", 1 if path.split(".")[-2].islower() else 2)
    owner = __import__(f"fastlr.kernels.{module}", fromlist=["_"])
    for name in names[:-1]:
        owner = getattr(owner, name)
    monkeypatch.setattr(owner, names[-1], spoiled(getattr(owner, names[-1])))


@pytest.mark.parametrize("path", FAULTS)
def test_a_fault_is_found(path, monkeypatch):
    spoil(monkeypatch, path)
    with pytest.raises(BackendError, match="fails the parity check on cpu: it differs from the reference by"):
        proven_error(FAULTS[path], "cpu", torch.float32)


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("charge_solver.batched_cpu.solve", structures.water),
        ("charge_solver.op.coulomb_form", structures.slab),
        ("ewald_mesh.cpu.Stencils.gather", ions),
    ],
)
def test_no_number_reaches_the_user(path, make, monkeypatch):
    """The first structure that needs it is refused."""
    potential = Potential(small_model("lr", dtype="float32"), backend="cpu")
    spoil(monkeypatch, path)
    with pytest.raises(BackendError, match="fails the parity check on cpu"):
        potential.predict(make())


def test_small_cells_in_a_list(monkeypatch):
    """They are solved by factorised matrices, which one alone is not."""
    several = [structures.salt(), structures.skewed_cell(), structures.salt(), structures.salt()]
    potential = Potential(small_model("lr"), backend="cpu")
    spoil(monkeypatch, "charge_solver.batched_cpu.solve")
    assert np.isfinite(potential.predict(several[0]).energy)
    with pytest.raises(BackendError, match=r"equilibration \(batched, cell\) fails the parity check on cpu"):
        potential.predict(several)


def test_proven_once(monkeypatch):
    potential, calls = Potential(small_model("lr"), backend="cpu"), []
    found = charges._found
    monkeypatch.setattr(charges, "_found", lambda *arguments: calls.append(arguments) or found(*arguments))
    for _ in range(3):
        potential.predict([structures.water(), structures.water_cluster()])
    assert [call[0] for call in calls] == [Regime("batched", "molecule", False, False)]


def test_parts(monkeypatch):
    """A structure that is evaluated part by part is the first to need what adds them up."""
    potential = Potential(small_model("nequip"), backend="cpu")
    atoms = structures.salt() * (4, 4, 4)
    expected = potential.predict(atoms)
    potential.memory_budget = 0.92 * potential._memory.bytes_of(Counts.of(potential.graph(atoms)))
    np.testing.assert_allclose(potential.predict(atoms).forces, expected.forces, atol=1e-10)
    potential._parts_are_checked = False
    monkeypatch.setattr(
        parts, "_add", lambda out, found, part: out["forces"].index_add_(0, part.atoms, found["forces"])
    )
    with pytest.raises(BackendError, match="fails the parity check"):
        potential.predict(atoms)


def test_the_reference_needs_no_proof(monkeypatch):
    monkeypatch.setattr(charges, "_found", None)
    assert np.isfinite(Potential(small_model("lr"), backend="reference").predict(structures.salt()).energy)
