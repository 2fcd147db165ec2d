"""Models with their radial networks from tables."""

import pytest
import torch
from fastlr.kernels.radial_table.naive import interpolate
from reference import structures
from reference.differences import relative_error
from reference.models import small_model

from fastlr.backends import resolve
from fastlr.models.derivatives import evaluate
from fastlr.models.tables import TOLERANCE, table_error, tabulate
from fastlr.potential import Potential


def graph_and_model(name: str, backend: str, dtype: str, trained_roots: bool = False):
    model = small_model(name, dtype=dtype, bessel_trainable=trained_roots)
    left_out = {"edge_basis": "roots are trained"} if trained_roots else {}
    model.use(resolve(backend, dtype=getattr(torch, dtype), left_out=left_out))
    atoms = [structures.water_cluster(), structures.salt(), structures.one_atom_cell()]
    return Potential(small_model(name, dtype=dtype), backend="reference").graph(atoms), model.requires_grad_(True)


def gradient_of_loss(model, graph) -> tuple[dict, torch.Tensor]:
    out = evaluate(model, graph, create_graph=True)
    loss = out["energy"].square().sum() + out["forces"].square().sum() + out["virial"].square().sum()
    weights = list(model.parameters())
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)
    return out, torch.cat([gradient.double().flatten() for gradient in gradients])


@pytest.mark.parametrize("trained_roots", [False, True], ids=["fixed roots", "trained roots"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_forces_and_gradients_of_all_weights(name, backend, dtype, tolerance, trained_roots):
    graph, model = graph_and_model(name, backend, dtype, trained_roots)
    exact, exact_gradient = gradient_of_loss(model, graph)
    size, error = tabulate(model)
    assert size > 5
    assert error <= TOLERANCE[getattr(torch, dtype)][0]
    found, gradient = gradient_of_loss(model, graph)
    assert not torch.equal(found["forces"], exact["forces"])  # tables are in use
    for key in ("energy", "forces", "virial"):
        assert relative_error(found[key].detach(), exact[key].detach()) < tolerance, key
    assert relative_error(gradient, exact_gradient) < 10.0 * tolerance


def test_rough_networks_have_no_table():
    model = small_model("nequip", dtype="float64")
    tabulate(model)
    with torch.no_grad():
        for layer in model.stack.layers:
            layer.radial_network.weights[0].mul_(1e4)
    assert table_error(model, 2048)[0] > TOLERANCE[torch.float64][0]
    assert tabulate(model) is None
    assert model.edge_embedding.table_intervals is None


def test_nothing_beyond_the_cutoff():
    model = small_model("nequip", dtype="float64")
    embedding = model.edge_embedding
    lengths = torch.tensor([0.5, 1.0, 1.2], dtype=torch.float64) * embedding.r_max
    radial = embedding.table(lengths, 64, torch.float64)
    weights = interpolate(radial.coefficients, radial.table(model.stack.layers[0].radial_network), radial.interval)
    assert weights[0].any()
    assert not weights[1:].any()


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_training_follows_the_same_curve(name):
    curves = {}
    for tables in (False, True):
        graph, model = graph_and_model(name, "cpu", "float64")
        target = torch.randn(graph.num_nodes, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        curves[tables] = []
        for step in range(50):
            if tables and step % 10 == 0:
                tabulate(model)
            optimizer.zero_grad()
            loss = ((evaluate(model, graph, create_graph=True)["forces"] - target) ** 2).mean()
            loss.backward()
            optimizer.step()
            curves[tables].append(loss.item())
    assert curves[False][-1] < 0.9 * curves[False][0]
    assert curves[True] == pytest.approx(curves[False], rel=1e-8)
