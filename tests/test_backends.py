"""The registry of backends and the parity check at load."""

import re
from importlib.util import find_spec

import pytest
import torch
from fastlr.kernels.tensor_product.naive import NaiveConvolution
from reference import structures
from reference.differences import relative_error
from reference.models import small_model

from fastlr import Potential, backends
from fastlr.backends import BACKENDS, OPERATIONS, Backend, obstacle, resolve
from fastlr.checks.operations import check_backend
from fastlr.errors import BackendError

has_cuequivariance = pytest.mark.skipif(
    find_spec("cuequivariance_torch") is None, reason="cuequivariance-torch is not installed"
)


def usable(name: str, dtype=torch.float32) -> bool:
    return obstacle(name, "cpu", dtype) is None


def test_unknown_backend():
    with pytest.raises(BackendError, match="'warp' cannot serve on cpu: there is no such backend; there are reference"):
        resolve("warp")


@pytest.mark.parametrize("name", list(BACKENDS))
def test_serves_or_says_why(name):
    """Nothing falls back in silence."""
    reason = obstacle(name)
    if reason is None:
        operations = resolve(name)
        assert operations.backend == name
        assert operations.chosen["tensor_product"] == name or not BACKENDS[name].implements
        return
    with pytest.raises(BackendError) as caught:
        resolve(name)
    assert f"backend '{name}' cannot serve on cpu" in str(caught.value)
    assert reason in str(caught.value)


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"cuequivariance-torch is not installed \(pip install"):
        Potential(small_model("nequip"), backend="cuequivariance")


def test_auto_takes_the_first_that_can_serve(monkeypatch):
    monkeypatch.setitem(backends.PREFERENCE, "cpu", ("broken", "reference"))
    monkeypatch.setitem(BACKENDS, "broken", Backend("broken", {}, lambda device, dtype: "it is broken"))
    assert resolve("auto").backend == "reference"
    monkeypatch.setitem(BACKENDS, "broken", Backend("broken", {}, lambda device, dtype: None))
    assert resolve("auto").backend == "broken"


def test_table_covers_every_operation():
    rows = resolve("reference").table()
    assert [operation for operation, _, _ in rows] == list(OPERATIONS)
    assert {served_by for _, served_by, _ in rows} == {"reference"}
    for operation in OPERATIONS:
        assert resolve("reference").function(operation)


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_report_names_each_operation(name):
    report = Potential(small_model(name), backend="reference", name="mine").report()
    assert report.startswith(f"mine: {'nequip' if name == 'nequip' else 'nequip-lr'}, ")
    assert all(operation in report for operation in OPERATIONS)
    assert "the specification itself" in report


@has_cuequivariance
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuequivariance_gives_the_same(dtype):
    model = small_model("lr", dtype=dtype)
    atoms = structures.water_cluster()
    expected = Potential(model, backend="reference").predict(atoms)
    potential = Potential(model, backend="cuequivariance")
    report = potential.report()
    assert re.search("tensor_product +cuequivariance +parity", report)
    assert "cuequivariance does not offer this operation" in report
    assert potential.parity[0].error > 0.0  # another implementation, not the reference again
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert relative_error(potential.predict(atoms).forces, expected.forces) < tolerance
    assert set(potential.model.state_dict()) == set(small_model("lr").state_dict())  # as it is saved
    assert potential.use("reference").predict(atoms).energy == expected.energy


class _WrongValues(NaiveConvolution):
    def forward(self, *inputs):
        return super().forward(*inputs) * (1.0 + 1e-4)


class _WrongGradient(NaiveConvolution):
    """The right values, but no gradient for the weights."""

    def forward(self, x, y, weights, edges):
        return super().forward(x, y, weights.detach() + 0.0 * weights, edges)


class _NotFinite(NaiveConvolution):
    def forward(self, *inputs):
        return super().forward(*inputs) + torch.nan


def wrong(kind):
    return lambda program, device, dtype: kind(program)


@pytest.mark.parametrize("kind", [_WrongValues, _WrongGradient, _NotFinite])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wrong_backend_fails_the_parity_check(kind, dtype, monkeypatch):
    monkeypatch.setattr(backends, "_wrong", wrong(kind), raising=False)
    backend = Backend("wrong", {"tensor_product": "fastlr.backends:_wrong"}, lambda device, dtype: None)
    monkeypatch.setitem(BACKENDS, "wrong", backend)
    with pytest.raises(BackendError, match="backend 'wrong' fails the parity check: tensor_product differs"):
        Potential(small_model("nequip", dtype=dtype), backend="wrong")
    with pytest.raises(BackendError, match="fails the parity check"):
        check_backend("wrong", "cpu", getattr(torch, dtype))


def test_right_backend_passes(monkeypatch):
    monkeypatch.setattr(backends, "_right", wrong(NaiveConvolution), raising=False)
    backend = Backend("right", {"tensor_product": "fastlr.backends:_right"}, lambda device, dtype: None)
    monkeypatch.setitem(BACKENDS, "right", backend)
    assert Potential(small_model("nequip"), backend="right").parity[0].error < 1e-12


def test_backend_that_no_check_covers_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "OPERATIONS", (*backends.OPERATIONS, "magic"))
    monkeypatch.setitem(BACKENDS, "bold", Backend("bold", {"magic": "some:where"}, lambda device, dtype: None))
    with pytest.raises(BackendError, match="offers magic, which no parity check covers"):
        Potential(small_model("lr"), backend="bold")


@pytest.mark.parametrize("name", list(BACKENDS))
def test_check_backend(name):
    if not usable(name):
        with pytest.raises(BackendError, match=f"backend '{name}' cannot serve"):
            check_backend(name)
    else:
        assert all(row.error < 1e-5 for row in check_backend(name))
