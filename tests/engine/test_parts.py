"""A structure evaluated part by part is the structure evaluated at once."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from reference.models import LR_MODELS, graph_of, small_model

from fastlr.backends import resolve
from fastlr.engine.parts import evaluate_in_parts, neighbourhood
from fastlr.engine.plan import Plan
from fastlr.engine.steps import Steps
from fastlr.errors import InputError
from fastlr.memory import Counts
from fastlr.models.derivatives import evaluate
from fastlr.models.pieces import Pieces
from fastlr.models.tables import find_size
from fastlr.potential import Potential


def salt(repeat: int, symbols):
    atoms = bulk("NaCl", "rocksalt", a=5.0, cubic=True).repeat(repeat)
    atoms.symbols = [symbols[k % len(symbols)] for k in range(len(atoms))]
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("pbc", [True, False])
@pytest.mark.parametrize("most", [80, 200, 10**6])
def test_the_same_result(most, pbc, num_layers):
    """In float64: a few parts, many, and all at once; parts whose surroundings are the whole cell, too."""
    model = small_model("nequip", dtype="float64", num_layers=num_layers, r_max=3.0).eval().requires_grad_(False)
    atoms = salt((3, 3, 6), model.config.species)
    atoms.pbc = pbc
    plan, graph, sizes = Plan(model, find_size(model)[0]), graph_of(model, [atoms]), []

    def fits(part):
        if part.num_nodes <= most:
            sizes.append(part.num_nodes)
        return part.num_nodes <= most

    found = evaluate_in_parts(plan, graph, fits, forces=True)
    expected = plan.evaluate(graph)
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0.0, atol=1e-10, equal_nan=True, msg=key)
    assert (len(sizes) == 1) == (most == 10**6)
    assert "forces" not in evaluate_in_parts(plan, graph, fits, forces=False)


@pytest.mark.parametrize("kind", LR_MODELS)
@pytest.mark.parametrize("pbc", [True, (True, True, False), False], ids=["cell", "slab", "molecule"])
@pytest.mark.parametrize("pieces", [Plan, Pieces])
def test_the_same_result_with_charges(pieces, kind, pbc):
    """Of the whole structure, while energies and what acts on the charges come in parts, by kernels or by autograd."""
    model = small_model(kind, r_max=3.0).eval().requires_grad_(False)
    atoms = salt((1, 2, 5), model.config.species)
    atoms.pbc = pbc
    plan, graph, sizes = Plan(model, find_size(model)[0]), graph_of(model, [atoms], 1.0), []

    def fits(part):
        if part.num_nodes <= 70:
            sizes.append(part.num_nodes)
        return part.num_nodes <= 70

    by_parts = plan if pieces is Plan else Pieces(model)
    found = evaluate_in_parts(by_parts, graph, fits, forces=True)
    expected = plan.evaluate(graph)
    assert len(sizes) >= 6  # two or more, three times
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0.0, atol=1e-9, equal_nan=True, msg=key)
    energy = evaluate_in_parts(by_parts, graph, fits, forces=False)
    assert "forces" not in energy
    torch.testing.assert_close(energy["energy"], expected["energy"], rtol=0.0, atol=1e-9)


def test_parts_by_fused_kernels():
    """Parts have edges without reverses, whose other ends these kernels need to know."""
    model = small_model("lr", r_max=3.0).eval().requires_grad_(False)
    expected = evaluate(model, graph := graph_of(model, [salt((1, 2, 4), model.config.species)]))
    model.use(resolve("cpu", "cpu", torch.float64))
    found = evaluate_in_parts(Pieces(model), graph, lambda part: part.num_nodes <= 60, forces=True)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0.0, atol=1e-9, equal_nan=True, msg=key)


def test_parts_of_fragments():
    """Charges that more than their sum is asked of."""
    model = small_model("lr", r_max=3.0).eval().requires_grad_(False)
    atoms = salt((1, 2, 4), model.config.species)
    atoms.arrays["fragment"] = np.arange(len(atoms)) // 32
    atoms.info["fragment_charge"] = [1.0, -0.5]
    plan, graph = Plan(model, find_size(model)[0]), graph_of(model, [atoms])
    found = evaluate_in_parts(plan, graph, lambda part: part.num_nodes <= 60, forces=True)
    for key, value in plan.evaluate(graph).items():
        torch.testing.assert_close(found[key], value, rtol=0.0, atol=1e-9, equal_nan=True, msg=key)


def test_what_an_energy_depends_on():
    """Nothing outside of a neighbourhood changes an energy inside; something at its rim does."""
    model = small_model("nequip", dtype="float64", num_layers=2, r_max=3.0).eval().requires_grad_(False)
    atoms = salt((2, 2, 5), model.config.species)
    plan, graph = Plan(model, find_size(model)[0]), graph_of(model, [atoms])
    part, inside = neighbourhood(graph, np.array([7]), 2)
    assert len(inside) < graph.num_nodes
    at = int(np.searchsorted(inside, 7))
    energies = plan.evaluate(part, forces=False)["atomic_energies"]
    assert float(energies[at]) == pytest.approx(float(plan.evaluate(graph)["atomic_energies"][7]), abs=1e-12)
    fewer, _ = neighbourhood(graph, np.array([7]), 1)
    assert fewer.num_nodes < part.num_nodes


def test_energies_that_count():
    """Some, then all of the same graph, then some others: none of it is left over."""
    model = small_model("nequip", dtype="float64", r_max=3.0).eval().requires_grad_(False)
    plan = Plan(model, find_size(model)[0])
    graph = graph_of(model, [salt((2, 2, 2), model.config.species)])
    half = (torch.arange(graph.num_nodes) % 2).double()
    some, others = (plan.energies_at(graph, None, counted) for counted in (half, 1.0 - half))
    whole, again = plan.evaluate(graph), plan.energies_at(graph, None, half)
    for key in ("forces", "virial"):
        assert torch.equal(some[key], again[key])
        torch.testing.assert_close(some[key] + others[key], whole[key], rtol=0.0, atol=1e-10)
    assert float((some["forces"] - whole["forces"]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["nequip", "lr"])
def test_a_budget_is_kept(kind):
    """``predict`` goes part by part where the structure would not fit, with the same result, and says when none can."""
    potential = Potential(small_model(kind, r_max=3.0), backend="cpu")
    atoms = salt((4, 4, 8), potential.species)
    whole = potential.predict(atoms)
    graph = potential.graph(atoms)
    counts, needed = Counts.of(graph), potential.plan.memory.bytes_of
    charges, total = needed(counts.charges), needed(counts)
    potential.memory_budget = graph.num_bytes + charges + 0.5 * (total - charges)
    assert potential.check_memory(graph)
    parts = potential.predict(atoms)
    assert parts.energy == pytest.approx(whole.energy, abs=1e-6 * len(atoms))
    np.testing.assert_allclose(parts.forces, whole.forces, atol=1e-5)
    np.testing.assert_allclose(parts.stress, whole.stress, atol=1e-6)
    small = atoms[:8]
    several = potential.predict([small, atoms, small])  # one among others
    assert several[1].energy == pytest.approx(whole.energy, abs=1e-6 * len(atoms))
    steps = Steps(potential)
    potential.memory_budget = None
    farther = steps.graph(atoms)  # by a skin
    potential.memory_budget = farther.num_bytes + needed(Counts.of(farther).charges) + 0.7 * (total - charges)
    steps.forget()
    step = steps.predict(atoms)
    assert steps._in_parts
    np.testing.assert_allclose(step.forces, whole.forces, atol=1e-5)
    potential.memory_budget = graph.num_bytes + 1.0
    with pytest.raises(InputError, match=r"structure 0 \(1024 atoms\) needs about .* GiB, .* even part by part"):
        potential.predict(atoms)
