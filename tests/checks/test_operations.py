"""Every operation beside its specification, and faults that must not pass."""

import subprocess
import sys

import pytest
import torch
from reference.models import small_model

import fastlr.potential
from fastlr import Potential
from fastlr.backends import BACKENDS, OPERATIONS, resolve
from fastlr.checks.operations import TOLERANCE, check_backend, check_operations
from fastlr.errors import BackendError

# Where the fast result of each operation is made
KERNELS = {
    "tensor_product": "tensor_product.cpu.gather",
    "tabulated_product": "tabulated_product.cpu.gather",
    "radial_table": "radial_table.cpu.values",
    "edge_basis": "edge_basis.cpu.forward",
    "irreps_linear": "irreps_linear.cpu.apply",
    "gate": "gate.cpu.gate",
    "message_passing": "message_passing.cpu.forward",
    "charge_equilibration": "charge_solver.batched_cpu.solve",
    "ewald": "ewald.cpu.potential",
    "ewald_mesh": "ewald_mesh.cpu.gather",
}
OF_LAYERS = [name for name in KERNELS if name not in ("message_passing", "ewald", "ewald_mesh")]


def scaled(function, factor: float = 1.01):
    """The function with all of its results off by one per cent."""

    def wrong(*arguments, **options):
        found = function(*arguments, **options)
        if isinstance(found, torch.Tensor):
            return found * factor
        return type(found)(value * factor if value.is_floating_point() else value for value in found)

    return wrong


def spoil(monkeypatch, operation: str) -> None:
    path = f"fastlr.kernels.{KERNELS[operation]}"
    module, _, name = path.rpartition(".")
    monkeypatch.setattr(path, scaled(getattr(__import__(module, fromlist=[name]), name)))


def test_every_operation_has_a_fault_here():
    assert set(KERNELS) == set(OPERATIONS) == set(BACKENDS["reference"].implements)


@pytest.mark.parametrize("operation", KERNELS)
def test_a_fault_is_found(operation, monkeypatch):
    spoil(monkeypatch, operation)
    with pytest.raises(BackendError, match=f"backend 'cpu' fails the parity check: {operation} differs from the ref"):
        check_backend("cpu")


@pytest.mark.parametrize("operation", OF_LAYERS)
def test_a_fault_is_found_at_load(operation, monkeypatch):
    """Of whatever the layers of a model use, where there is no inference plan."""
    monkeypatch.setattr(fastlr.potential.Potential, "_table_size", lambda self: None)
    potential = Potential(small_model("lr"), backend="cpu")
    assert potential.plan is None
    served = [row.operation for row in potential.parity]
    assert operation in served
    assert f"{operation:<20} cpu             parity" in potential.report()
    spoil(monkeypatch, operation)
    with pytest.raises(BackendError, match="fails the parity check: "):
        Potential(small_model("lr"), backend="cpu")


def test_second_derivatives_for_training(monkeypatch):
    model, operations = small_model("nequip"), resolve("cpu", dtype=torch.float64)
    model.use(operations)
    rows = check_operations(model, operations, order=2)
    assert all(row.error < TOLERANCE[torch.float64] for row in rows)
    from fastlr.kernels.gate import cpu

    monkeypatch.setattr(cpu, "double_backward", scaled(cpu.double_backward))
    check_operations(model, operations, ["gate"])  # forces alone do not need it
    with pytest.raises(BackendError, match="gate differs"):
        check_operations(model, operations, ["gate"], order=2)


def test_the_reference_imports_no_compiler():
    """Nor a kernel: everything is plain PyTorch."""
    script = """
import sys
import fastlr
from ase.build import bulk, molecule
potential = fastlr.load("aqueous-xtb", backend="reference")
potential.predict([molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6)])
compilers = {"llvmlite", "triton"} & {name.partition(".")[0] for name in sys.modules}
kernels = [name for name in sys.modules if name.startswith("fastlr.") and name.endswith((".native", ".cpu"))]
print(compilers, kernels)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["set()", "[]"]
