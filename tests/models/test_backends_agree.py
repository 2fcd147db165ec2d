"""Whole models by each backend: energies, forces, second derivatives, and what training makes of them."""

from copy import deepcopy

import pytest
import torch
from reference import structures
from reference.differences import relative_error
from reference.models import small_model

from fastlr.backends import resolve
from fastlr.models.derivatives import evaluate
from fastlr.potential import Potential, load

BACKENDS = ["cpu", "cuequivariance"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "cuequivariance":
        pytest.importorskip("cuequivariance_torch")
    return request.param


def with_backend(name: str, backend: str, dtype: str = "float64"):
    model = small_model(name, dtype=dtype, bessel_trainable=False)
    model.use(resolve(backend, dtype=getattr(torch, dtype)))
    return model


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_energies_forces_stress(name, backend):
    atoms = [structures.water_cluster(), structures.salt(), structures.one_atom_cell()]
    expected = Potential(with_backend(name, "reference"), backend="reference").predict(atoms)
    found = Potential(with_backend(name, backend), backend=backend).predict(atoms)
    for value, reference in zip(found, expected, strict=True):
        assert value.energy == pytest.approx(reference.energy, rel=1e-13)
        if reference.forces.any():
            assert relative_error(value.forces, reference.forces) < 1e-11


def test_files_hold_the_weights_and_nothing_of_the_backend(backend, tmp_path):
    potential = deepcopy(Potential(with_backend("lr", backend), backend=backend))
    potential.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", backend="reference")
    atoms = structures.salt()
    assert loaded.predict(atoms).energy == pytest.approx(potential.predict(atoms).energy, rel=1e-12)


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_hessian_is_symmetric(name, backend):
    """And that of the reference: rows by second derivatives of the energy."""
    atoms = structures.water()
    hessians = {}
    for which in ("reference", backend):
        model = with_backend(name, which).requires_grad_(False)
        graph = Potential(model, backend=which).graph(atoms)
        out = evaluate(model, graph, create_graph=True)
        positions = [t for t in _leaves(out["forces"]) if t.shape == graph.positions.shape]
        assert len(positions) == 1
        rows = [
            -torch.autograd.grad(force, positions[0], retain_graph=True)[0].flatten()
            for force in out["forces"].flatten()
        ]
        hessians[which] = torch.stack(rows)
    hessian = hessians[backend]
    assert torch.linalg.norm(hessian) > 0.1
    assert torch.linalg.norm(hessian - hessian.T) < 1e-10 * torch.linalg.norm(hessian)
    assert torch.linalg.norm(hessian - hessians["reference"]) < 1e-10 * torch.linalg.norm(hessian)


def _leaves(tensor) -> list[torch.Tensor]:
    """The leaves of a tensor's graph."""
    found, seen, todo = [], set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_training_follows_the_same_curve(name, dtype, tolerance, backend):
    """Fifty steps on forces (and charges) from one seed, second derivatives and all."""
    atoms = [structures.water_cluster(), structures.salt()]
    curves = {}
    for which in ("reference", backend):
        model = with_backend(name, which, dtype).requires_grad_(True)
        graph = Potential(with_backend(name, "reference", dtype), backend="reference").graph(atoms)
        target = torch.randn(graph.num_nodes, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            out = evaluate(model, graph, create_graph=True)
            loss = ((out["forces"] - target) ** 2).mean()
            if "charges" in out:
                loss = loss + (out["charges"] ** 2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves[which] = torch.tensor(losses)
    assert curves["reference"][-1] < 0.9 * curves["reference"][0]
    assert torch.allclose(curves[backend], curves["reference"], rtol=tolerance, atol=0.0)
