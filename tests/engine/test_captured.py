"""Padded graphs, and evaluations that are replayed on them, with a stand-in for CUDA graphs; tests of a GPU's own come
with one."""

import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from fastlr.kernels.adjacency import Adjacency
from reference import structures
from reference.models import LR_MODELS, MODELS, graph_of, small_model
from torch.utils._python_dispatch import TorchDispatchMode

from fastlr import Potential
from fastlr.backends import Operations, resolve
from fastlr.engine import captured
from fastlr.engine.captured import Captured
from fastlr.engine.padding import EDGES_AN_ATOM, Sizes, padded
from fastlr.engine.steps import Steps
from fastlr.errors import InputError
from fastlr.graph import Graph
from fastlr.models.derivatives import evaluate
from fastlr.models.pieces import Pieces
from fastlr.models.tables import tabulate
from fastlr.nn.edge_embedding import EdgeEmbedding


def again(function):
    """A stand-in for a CUDA graph: runs once when it is made, and writes to the same tensors whenever it is called."""
    out = function()

    def replayed():
        for values in out.values():
            values.fill_(torch.nan)
        for name, values in function().items():
            out[name].copy_(values)
        return out

    return replayed


def captured_of(name: str, **changes) -> tuple[Captured, torch.nn.Module]:
    model = small_model(name, **changes).eval().requires_grad_(False)
    return Captured(model, again), model


def served(name: str) -> list:
    makers = structures.STRUCTURES if name not in LR_MODELS else {**structures.MOLECULES, **structures.CELLS}
    return [make() for make in makers.values()]


def assert_same(found: dict, expected: dict, atol: float):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert not found[key].requires_grad
        torch.testing.assert_close(found[key], value, rtol=0.0, atol=atol, equal_nan=True, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("name", ["salt", "water_cluster", "one_atom"])
def test_padded_graphs(name):
    """Filled up with edges that are in order, have reverses, are shared out evenly and lie beyond the cutoff."""
    atoms = {"salt": structures.salt, "water_cluster": structures.water_cluster}.get(name, structures.salt)()
    atoms = atoms[:1] if name == "one_atom" else atoms
    model = small_model("nequip")
    graph = graph_of(model, [atoms, atoms])
    sizes = Sizes.of(graph)
    full = padded(graph, sizes, model.config.r_max)
    assert (full.num_nodes, full.num_edges, full.num_structures) == sizes
    n, count = graph.num_nodes, graph.num_edges
    for key in ("positions", "species", "batch"):
        assert torch.equal(getattr(full, key)[:n], getattr(graph, key))
    assert torch.equal(full.edge_index[:, :count], graph.edge_index)
    destination, source = full.edge_index
    found = Adjacency.from_edges(full.edge_index, full.num_nodes)
    assert torch.equal(found.row_ptr, full.row_ptr)
    assert torch.equal(found.row_edge, torch.arange(full.num_edges))
    assert torch.equal(full.edge_index[:, full.reverse_edge], torch.stack([source, destination]))
    assert torch.equal(full.reverse_edge.sort().values, torch.arange(full.num_edges))
    lengths = full.edge_vectors().norm(dim=1)
    assert (lengths[count:] > model.config.r_max).all()
    degrees = (full.row_ptr[1:] - full.row_ptr[:-1])[n:]
    assert degrees.max() <= EDGES_AN_ATOM
    assert degrees.max() - degrees[: 2 * (len(degrees) // 2)].min() <= 1
    assert (full.batch[n:] == graph.num_structures).all()


def test_sizes_are_few():
    """From one to the next it is an eighth at most, but for the smallest; and none is too small."""
    graph = graph_of(small_model("nequip"), [structures.salt()])
    seen = set()
    for edges in range(0, 4000, 2):
        part = Graph(**{**vars(graph), "edge_index": torch.zeros(2, edges, dtype=torch.int64)})
        sizes = Sizes.of(part)
        assert edges <= sizes.edges <= max(1.125 * edges + 1, edges + 16)
        assert (sizes.nodes - part.num_nodes - 1) * EDGES_AN_ATOM >= sizes.edges - edges
        seen.add(sizes.edges)
    assert len(seen) < 50
    assert sizes.structures == 2


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_model(name):
    """Each structure alone, and all in a batch, charged ones and none with atoms among them."""
    replayed, model = captured_of(name)
    every = served(name)
    for some in ([atoms] for atoms in every):
        graph = graph_of(model, some)
        assert_same(replayed.evaluate(graph), evaluate(model, graph), 1e-9)
    graph = graph_of(model, every)
    assert_same(replayed.evaluate(graph), evaluate(model, graph), 1e-9)
    energies = evaluate(model, graph, forces=False)
    assert_same(replayed.evaluate(graph, forces=False), energies, 1e-9)


def test_pieces_add_up(rng):
    """The pieces of a model without charges, and what counts in derivatives."""
    model = small_model("nequip").eval().requires_grad_(False)
    graph = graph_of(model, [structures.salt()])
    counted = torch.from_numpy(rng.uniform(size=graph.num_nodes))
    pieces = Pieces(model)
    some, rest, whole = (pieces.energies_at(graph, None, share) for share in (counted, 1.0 - counted, 1.0))
    expected = evaluate(model, graph)
    for key in ("forces", "virial"):
        torch.testing.assert_close(some[key] + rest[key], expected[key], rtol=0.0, atol=1e-11)
        torch.testing.assert_close(whole[key], expected[key], rtol=0.0, atol=1e-11)
    assert set(whole) == {"atomic_energies", "forces", "virial"}


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_a_bucket_serves_many(name, rng):
    """Structures of about one size share a bucket; what one has left there, the next does not see."""
    replayed, model = captured_of(name)
    salt = structures.salt()
    wider = salt.copy()
    wider.set_cell(salt.cell * 1.01, scale_atoms=True)
    fewer = salt[:-1]
    for atoms in (salt, wider, fewer, salt, fewer, wider):
        atoms = atoms.copy()
        atoms.rattle(0.05, rng=rng)
        graph = graph_of(model, [atoms], 1.0)
        assert_same(replayed.evaluate(graph), evaluate(model, graph), 1e-9)
    assert replayed.captures < 4
    assert len({Sizes.of(graph_of(model, [atoms])) for atoms in (salt, wider, fewer)}) == replayed.captures


@pytest.mark.parametrize("name", ["nequip", "lr"])
@pytest.mark.parametrize("largest", [Captured.LARGEST, 10])
def test_steps(name, largest, rng, monkeypatch):
    """Along a path, with edges that are longer than the cutoff; also where graphs are too large to be replayed."""
    monkeypatch.setattr(Captured, "LARGEST", largest)
    potential = Potential(small_model(name), backend="reference")
    potential.captured = Captured(potential.model, again)
    alone = Potential(small_model(name), backend="reference")
    steps, atoms = Steps(potential, skin=0.8), structures.salt()
    atoms.info["charge"] = 1
    for number in range(6):
        atoms = atoms.copy()
        atoms.rattle(0.04, rng=rng)
        if number == 4:
            atoms.info["charge"] = -1
        found, expected = steps.predict(atoms), alone.predict(atoms)
        assert found.energy == pytest.approx(expected.energy, abs=1e-8)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-7)
        np.testing.assert_allclose(found.stress, expected.stress, atol=1e-8)
    assert steps.rebuilds < steps.evaluations
    graph = steps.graph(atoms)
    positions = graph.positions.clone()
    first, second = graph.edge_index[:, 0].tolist()
    positions[second] += graph.edge_vectors()[0].neg() * (1.0 - 1e-5)
    with pytest.raises(InputError, match=f"atoms {min(first, second)} and {max(first, second)} overlap"):
        potential.captured.evaluate(replace(graph, positions=positions))


def test_fragments():
    replayed, model = captured_of("lr")
    atoms = structures.water_cluster()
    atoms.arrays["fragment"] = (np.arange(len(atoms)) >= 3).astype(int)
    del atoms.info["charge"]
    atoms.info["fragment_charge"] = [1.0, -0.5]
    graph = graph_of(model, [atoms])
    assert_same(replayed.evaluate(graph), evaluate(model, graph), 1e-9)


def test_buckets_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(captured, "BUCKETS", 2)
    replayed, model = captured_of("nequip")
    graphs = [graph_of(model, [structures.salt().repeat((k, 1, 1))]) for k in (1, 2, 3)]
    for graph in (*graphs, graphs[2], graphs[1]):
        assert_same(replayed.evaluate(graph), evaluate(model, graph), 1e-9)
    assert replayed.captures == 3
    replayed.evaluate(graphs[0])
    assert replayed.captures == 4


def test_tables_in_float32():
    """As models on GPUs are used: with tables that are kept, and edges beyond the cutoff."""
    replayed, model = captured_of("lr", dtype="float32")
    tabulate(model, keep=True)
    exact = small_model("lr").eval().requires_grad_(False)
    graph = graph_of(exact, [structures.salt()], 1.0)
    found, expected = replayed.evaluate(graph), evaluate(exact, graph)
    np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-5)
    np.testing.assert_allclose(found["energy"], expected["energy"], atol=1e-6 * graph.num_nodes)


def test_a_copy_is_made_anew():
    replayed, model = captured_of("nequip")
    graph = graph_of(model, [structures.salt()])
    expected = replayed.evaluate(graph)
    copy = pickle.loads(pickle.dumps(replayed))
    assert copy.captures == 0
    assert_same(copy.evaluate(graph), expected, 1e-12)


class Watch(TorchDispatchMode):
    """Refuses what a host would have to wait for, or to send."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        devices = {value.device.type for value in (*arguments, out) if isinstance(value, torch.Tensor) and value.ndim}
        if len(devices) > 1:
            raise AssertionError(f"{function} between {' and '.join(sorted(devices))}")
        return out


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("nequip", "energies_at"),
        ("nequip-no-parity", "energies_at"),
        *product(("lr", "lr-separate-stacks"), ("electronegativities", "energies_at", "pulls_at")),
    ],
)
def test_nothing_is_waited_for(name, piece):
    """Kernels of a GPU can be captured if no value decides what comes next, and none comes from the host: seen without
    a GPU with tensors that have no values (device "meta")."""
    model = small_model(name, dtype="float32").eval().requires_grad_(False)
    model.use(resolve("cpu", "cpu", torch.float32))  # operators that know devices without values
    model.to("meta")
    for module in model.modules():
        if isinstance(module, EdgeEmbedding):
            module.table_intervals, module.kept_tables = 64, {}
    graph = graph_of(small_model("nequip"), [structures.salt(), structures.water_cluster()]).to("meta")
    numbers = torch.zeros(graph.num_nodes, dtype=torch.float64, device="meta")
    charges = numbers if name in LR_MODELS else None
    pieces = Pieces(model)
    run = {
        "energies_at": lambda: pieces.energies_at(graph, charges),
        "electronegativities": lambda: {"chi": pieces.electronegativities(graph)},
        "pulls_at": lambda: pieces.pulls_at(graph, numbers),
    }[piece]
    run()  # makes the tables
    with Watch():
        found = run()
    assert {values.device.type for values in found.values()} == {"meta"}


def test_a_potential_says_what_it_captures(monkeypatch):
    potential = Potential(small_model("lr"), backend="reference")
    monkeypatch.setattr(Operations, "executor", property(lambda self: lambda model: Captured(model, again)))
    potential._capture()
    assert potential.captured.captures == 1
    assert "kernels of up to 200,000 edges are launched together\n  max |dE|" in potential.report()
    assert np.isfinite(potential.predict(structures.salt()).energy)
    assert potential.captured.captures == 2


def test_a_gpu_that_cannot_capture(monkeypatch):
    def failing(function):
        raise RuntimeError("CUDA error: operation not permitted\nwhile a stream is captured")

    potential = Potential(small_model("lr"), backend="reference")
    monkeypatch.setattr(Operations, "executor", property(lambda self: lambda model: Captured(model, failing)))
    with pytest.warns(
        UserWarning, match="launched one by one, for no CUDA graph could be made: CUDA error: operation not"
    ):
        potential._capture()
    assert potential.captured is None
    assert "launched together" not in potential.report()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_cuda_graphs(name, dtype, rng):
    """On the device: every structure, then a path, as the reference on the CPU has it."""
    potential = Potential(small_model(name, dtype=dtype), backend="triton", device="cuda")
    assert potential.captured is not None
    expected = Potential(small_model(name), backend="reference", device="cpu")
    atol = {"float32": 1e-5, "float64": 1e-8}[dtype]
    for atoms in served(name):
        found, wanted = potential.predict(atoms), expected.predict(atoms)
        assert found.energy == pytest.approx(wanted.energy, abs=atol * max(len(atoms), 1))
        np.testing.assert_allclose(
            found.forces, wanted.forces, atol=atol * max(1.0, abs(wanted.forces).max(initial=0.0))
        )
    steps, atoms = Steps(potential, skin=0.8), structures.salt()
    for _ in range(5):
        atoms = atoms.copy()
        atoms.rattle(0.03, rng=rng)
        np.testing.assert_allclose(steps.predict(atoms).forces, expected.predict(atoms).forces, atol=20 * atol)
    assert steps.rebuilds < 5
