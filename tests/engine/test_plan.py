"""The inference plan against autograd through the float64 reference, and against itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import structures
from reference.models import LR_MODELS, MODELS, graph_of, small_model

from fastlr import Potential
from fastlr.backends import resolve
from fastlr.engine import edge_list
from fastlr.engine.buffers import Buffers
from fastlr.engine.plan import Plan
from fastlr.engine.pruning import SCALAR, prune
from fastlr.errors import BackendError, InputError, NonFiniteError
from fastlr.graph import CoulombSettings, Graph
from fastlr.models import build_model, parse_config
from fastlr.models.derivatives import evaluate
from fastlr.models.tables import find_size

TOLERANCE = {"float64": (1e-10, 1e-10), "float32": (1e-6, 1e-5)}


def plan_of(model) -> Plan:
    return Plan(model.eval().requires_grad_(False), find_size(model)[0])


def reference_of(model) -> torch.nn.Module:
    """The same weights in float64 with the reference kernels."""
    exact = build_model(model.config.model_copy(update={"dtype": "float64"}), resolve("reference"))
    exact.load_state_dict({k: v.to(exact.state_dict()[k].dtype) for k, v in model.state_dict().items()})
    return exact


def served(name: str) -> list:
    """Structures that a model of this kind serves."""
    makers = structures.STRUCTURES if name not in LR_MODELS else {**structures.MOLECULES, **structures.CELLS}
    made = [make() for make in makers.values()]
    return [*made, structures.slab()] if name in LR_MODELS else made


def assert_agree(found: dict, expected: dict, dtype: str, num_atoms: int):
    """Energies an atom and forces, and everything else relative to its size; NaN where the other is."""
    energy, force = TOLERANCE[dtype]
    for key, value in expected.items():
        scale = max(1.0, float(value.nan_to_num().abs().max())) if value.numel() else 1.0
        limit = (force if key in ("forces", "virial", "stress") else energy) * scale
        if key == "energy":
            limit *= max(num_atoms, 1)
        assert found[key].dtype == torch.float64, key
        assert not found[key].requires_grad, key
        torch.testing.assert_close(found[key], value, rtol=0.0, atol=limit, equal_nan=True, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_reference(name, dtype):
    """Molecules, cells, slabs, charged ones, one atom, none; in one batch and each alone."""
    model = small_model(name, dtype=dtype)
    plan, exact = plan_of(model), reference_of(model)
    several = served(name)
    for batch in (several, *([one] for one in several)):
        graph = graph_of(model, batch)
        assert_agree(plan.evaluate(graph), evaluate(exact, graph), dtype, graph.num_nodes)


@pytest.mark.parametrize("features", [[20], [33, 17], [16, 8, 5], [8, 7, 5, 3]], ids=lambda f: f"l{len(f) - 1}")
@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_degrees_and_multiplicities(features, parity, dtype):
    torch.manual_seed(1)
    changes = {"l_max": len(features) - 1, "num_features": features, "parity": parity, "num_layers": 3}
    model = small_model("nequip", dtype=dtype, **changes)
    graph = graph_of(model, [structures.salt() * (2, 1, 1), structures.water_cluster()])
    found = plan_of(model).evaluate(graph)
    assert_agree(found, evaluate(reference_of(model), graph), dtype, graph.num_nodes)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_irreps_of_the_other_parity(dtype):
    """Vectors of even parity take two more layers to the energy than those of odd parity, odd scalars three."""
    model = small_model("nequip", dtype=dtype, num_layers=6)
    with torch.no_grad():  # odd scalars are small in structures that are hardly chiral
        model.stack.layers[2].linear_2.weights["0o"].mul_(1e4)
    layers, _ = prune(model.stack, {SCALAR})
    assert {"0o", "1e", "2o"} <= {str(ir) for _, ir in layers[2].irreps_out}
    graph = graph_of(model, [structures.salt() * (2, 1, 1), structures.water_cluster()])
    found = plan_of(model).evaluate(graph)
    assert_agree(found, evaluate(reference_of(model), graph), dtype, graph.num_nodes)


@pytest.mark.parametrize("name", ["nequip", "lr", "lr-separate-stacks", "lr-gaussian-no-site"])
def test_forces_are_the_derivative_of_its_own_energy(name, rng):
    model = small_model(name)
    plan = plan_of(model)
    for make in (structures.salt, structures.skewed_cell, structures.water_cluster):
        graph, step = graph_of(model, make()), 1e-4
        forces = plan.evaluate(graph)["forces"]
        direction = torch.from_numpy(rng.normal(size=graph.positions.shape))
        energies = []
        for k in (-2, -1, 1, 2):
            moved = replace(graph, positions=graph.positions + k * step * direction)
            energies.append(float(plan.evaluate(moved, forces=False)["energy"]))
        slope = (energies[0] - 8.0 * energies[1] + 8.0 * energies[2] - energies[3]) / (12.0 * step)
        assert -slope == pytest.approx(float((forces * direction).sum()), abs=1e-6)


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_virial_is_the_derivative_by_strain(name):
    model = small_model(name)
    plan, atoms, step = plan_of(model), structures.skewed_cell(), 1e-5
    virial = plan.evaluate(graph_of(model, atoms))["virial"][0]
    for a, b in ((0, 0), (1, 2), (2, 0)):
        energies = []
        for sign in (-1, 1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            deformed = atoms.copy()
            deformed.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(float(plan.evaluate(graph_of(model, deformed), forces=False)["energy"]))
        assert float(virial[a, b]) == pytest.approx((energies[1] - energies[0]) / (2.0 * step), abs=1e-6)


@pytest.mark.parametrize("name", ["nequip", "lr-separate-stacks"])
@pytest.mark.parametrize("sorted_from", [0, 10**9], ids=["sorted", "as given"])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.usefixtures("many_cores")
def test_threads_and_order_change_nothing(name, sorted_from, threads, monkeypatch):
    """Each share of the work adds to copies of its own; rows may be in another order than atoms."""
    monkeypatch.setattr(edge_list, "UNSORTED", sorted_from)
    monkeypatch.setattr(edge_list, "EDGES_A_THREAD", 5)
    model = small_model(name)
    graph = graph_of(model, [structures.salt() * (3, 2, 1), structures.water_cluster(), structures.empty()])
    expected = evaluate(reference_of(model), graph)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        plan = plan_of(model)
        found = plan.evaluate(graph)
        assert len(plan._bound.edges.bounds) == threads + 1
        again = plan.evaluate(graph)
    finally:
        torch.set_num_threads(before)
    assert_agree(found, expected, "float64", graph.num_nodes)
    assert all(torch.equal(found[key].nan_to_num(), again[key].nan_to_num()) for key in found)  # to the last bit


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_nothing_is_taken_from_what_was_there(name, monkeypatch):
    """Buffers are full of NaN before each evaluation."""
    original = Buffers.get

    def poisoned(self, *arguments):
        tensor = original(self, *arguments)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(-(2**40))

    monkeypatch.setattr(Buffers, "get", poisoned)
    model = small_model(name)
    plan, exact = plan_of(model), reference_of(model)
    for make in (structures.salt, structures.water, structures.isolated_atom, structures.salt):
        graph = graph_of(model, make())
        assert_agree(plan.evaluate(graph), evaluate(exact, graph), "float64", graph.num_nodes)


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_longer_edges_do_not_count(name):
    model = small_model(name)
    plan, config, atoms = plan_of(model), model.config, structures.salt() * (2, 2, 1)
    graph = graph_of(model, atoms)
    longer = Graph.single(atoms, config.species, config.r_max, None, None, 0, skin=1.0)
    assert longer.num_edges > 1.5 * graph.num_edges
    longer = replace(longer, coulomb=graph.coulomb)
    assert_agree(plan.evaluate(longer), plan.evaluate(graph), "float64", graph.num_nodes)


def test_only_positions_change(rng):
    """Buffers and calls are made once; every step is that of a new plan."""
    model = small_model("lr")
    plan, graph = plan_of(model), graph_of(model, structures.salt() * (2, 1, 1))
    plan.evaluate(graph)
    bound, size = plan._bound, plan.num_bytes
    for _ in range(3):
        shift = torch.from_numpy(rng.normal(scale=0.01, size=graph.positions.shape))
        moved = replace(graph, positions=graph.positions + shift, charge=graph.charge + 0.5)
        found = plan.evaluate(moved)
        assert plan._bound is bound
        assert plan.num_bytes == size
        assert_agree(found, plan_of(model).evaluate(moved), "float64", graph.num_nodes)


def test_edges_at_the_cutoff():
    """Just inside, just outside, and right at it."""
    model = small_model("nequip")
    plan, exact = plan_of(model), reference_of(model)
    from ase import Atoms

    for distance in (model.config.r_max * (1.0 + k * 1e-15) for k in (-(10**9), -1, 0, 1)):
        atoms = Atoms("NaCl", [[0, 0, 0], [distance, 0, 0]])
        graph = Graph.single(atoms, model.config.species, model.config.r_max, skin=0.5)
        assert_agree(plan.evaluate(graph), evaluate(exact, graph), "float64", 2)


def test_overlapping_atoms_are_named():
    model = small_model("nequip")
    graph = graph_of(model, structures.water_cluster())
    positions = graph.positions.clone()
    positions[5] = positions[2] + 0.01
    with pytest.raises(InputError, match="atoms 2 and 5 overlap"):
        plan_of(model).evaluate(replace(graph, positions=positions))


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_positions_that_are_no_numbers(name):
    potential = Potential(small_model(name))
    graph = potential.graph(structures.salt())
    graph.positions[3, 1] = torch.nan
    with pytest.raises((NonFiniteError, InputError)):
        potential.evaluate(graph, [structures.salt()])


def test_a_wrong_plan_does_not_load(monkeypatch):
    from fastlr.engine import folding

    original = folding.both_ways

    def wrong(weights, layout, dtype):
        forward, backward = original(weights, layout, dtype)
        return forward, backward * (1.0 + 1e-3)  # energies are right, forces are not

    monkeypatch.setattr(folding, "both_ways", wrong)
    with pytest.raises(BackendError, match=r"the inference plan fails the parity check: max .* against the float64"):
        Potential(small_model("nequip"))


def test_report_tells_the_stages():
    potential = Potential(small_model("lr"))
    potential.predict(structures.salt())
    report = potential.report()
    for words in ("inference plan", "max |dE|", "max |dF|", "charge layer 1", "collect", "forces and virial"):
        assert words in report
    assert (
        "no inference plan: it is made of kernels for CPUs, and the backend is 'reference'"
        in Potential(small_model("lr"), backend="reference").report()
    )


def test_same_weights_as_nequip_sized_models():
    """A model of the usual size, in float32, on a few hundred atoms with many neighbours."""
    torch.manual_seed(0)
    config = {"kind": "nequip", "species": ["Na", "Cl"], "r_max": 4.5, "num_layers": 3, "avg_num_neighbors": 18.0}
    model = build_model(parse_config(config))
    graph = graph_of(model, structures.salt() * (3, 3, 3))
    assert_agree(plan_of(model).evaluate(graph), evaluate(reference_of(model), graph), "float32", graph.num_nodes)


def test_what_never_reaches_the_energy_is_left_out():
    """In the layer before the last, irreps that no spherical harmonic turns into scalars; their paths and gates."""
    model = small_model("nequip", num_layers=3)
    layers, read = prune(model.stack, {SCALAR})
    kept = [{str(ir) for _, ir in layer.irreps_out} for layer in layers]
    assert kept[-2:] == [{"0e", "1o", "2e"}, {"0e"}]
    assert {str(ir) for _, ir in model.stack.layers[1].irreps_out} > kept[1]
    assert {str(ir) for ir in read} == {"0e"}
    for layer, pruned in zip(model.stack.layers, layers, strict=True):
        assert pruned.program.weight_numel <= layer.program.weight_numel
    assert layers[1].program.weight_numel < model.stack.layers[1].program.weight_numel
    # without the opposite parities there is nothing to leave out
    model = small_model("nequip-no-parity", num_layers=3)
    layers, _ = prune(model.stack, {SCALAR})
    assert [layer.program for layer in layers] == [layer.program for layer in model.stack.layers]


def test_other_coulomb_tables_are_not_taken_for_the_same():
    """Two graphs of the same edges and cell."""
    model = small_model("lr", dtype="float64")
    plan, graph = plan_of(model), graph_of(model, [structures.salt()])
    plan.evaluate(graph)
    rough = Graph.single(structures.salt(), model.config.species, model.config.r_max, CoulombSettings(
        tuple(model.config.widths), 1e-2
    ))  # fmt: skip
    other = replace(graph, coulomb=rough.coulomb)
    found, expected = plan.evaluate(other), plan_of(model).evaluate(other)
    assert torch.equal(found["energy"], expected["energy"])
    assert float((found["energy"] - plan.evaluate(graph)["energy"]).abs()) > 1e-6
