"""What is said of the error of charges holds: fifty of the seeds that ``fastlr bench charges`` goes through."""

import pytest
import torch
from fastlr.bench import charge_bounds, charge_precision
from fastlr.bench.charge_bounds import KINDS, WAYS, bounds, case, check

from fastlr.checks.inference import InferenceCheck
from fastlr.engine.plan import Plan


def test_bounds_hold():
    found = bounds(range(50), largest=60, say=[].append)
    assert found["broken"] == 0
    assert found["stated"] >= 30
    assert found["refused"] == 0
    assert found["median_over_error"] < 100.0


def test_seeds_cover_everything():
    cases = [case(seed, 20) for seed in range(98)]
    assert {(problem.kind, problem.way) for problem in cases} >= {
        (kind, way) for kind in KINDS for way in WAYS if way != "particle mesh" or kind not in ("molecule", "slab")
    }
    assert {str(problem.dtype) for problem in cases} == {"torch.float32", "torch.float64"}
    assert any(problem.total for problem in cases)
    assert 8 <= sum(problem.fragment is not None for problem in cases) <= 40
    same = case(17, 20)
    assert (same.atoms.positions == cases[17].atoms.positions).all()
    assert same.chi.tolist() == cases[17].chi.tolist()


def test_a_broken_bound_shows(monkeypatch):
    original = charge_bounds.check
    monkeypatch.setattr(charge_bounds, "check", lambda problem: original(problem) | {"error": 1.0})
    said = []
    assert bounds(range(7, 10), largest=10, say=said.append)["broken"] == 3
    assert sum("broken" in line for line in said) == 3


def test_precision(monkeypatch):
    """What README says of the bundled model; an error shows."""
    rows = charge_precision.precision((None,), say=[].append)
    assert len(rows) == 3
    for row in rows:
        assert 0.0 < row["largest_charge_error_e"] < 2e-6
        assert 0.0 < row["largest_force_error_eV_per_A"] < 1e-5 * row["largest_force_eV_per_A"]
    original = Plan.evaluate
    monkeypatch.setattr(Plan, "evaluate", lambda *a, **k: {n: 1.01 * v for n, v in original(*a, **k).items()})
    monkeypatch.setattr("fastlr.potential.check_inference", lambda *a: InferenceCheck(1, 0.0, 0.0, 0.0))
    *_, last = charge_precision.precision((None,), say=[].append)
    assert last["largest_force_error_eV_per_A"] == pytest.approx(0.01 * last["largest_force_eV_per_A"], rel=1e-2)
    assert last["largest_charge_error_e"] > 1e-5


@pytest.mark.parametrize("seed", [1, 9, 17])
def test_exact_charges_are_exact(seed):
    """They do not depend on how the sums are split."""
    problem = case(seed, 12)
    assert check(problem)["error"] < 1e-2
    system = problem.system(charge_bounds.EXACT)
    other = problem.system(1e-13)
    assert float(system.tables.truncation[0]) < 1e-13
    total = torch.tensor([problem.total], dtype=torch.float64)
    others = problem.atoms_hardness, total, charge_bounds.COULOMB_CONSTANT, problem.constraints
    charges = charge_bounds.naive.equilibrate(other, problem.chi, *others)[0]
    assert float((charges - problem.exact()).abs().max()) < 1e-9
