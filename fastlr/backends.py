"""The registry of backends: which implementation serves which operation.

``resolve("auto", ...)`` decides once, when a model is loaded. A backend is asked for by name and either serves or
raises ``BackendError`` that says why; nothing falls back in silence. An operation that the named backend does not
offer is done by ``reference``, and ``Operations.table()`` says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

import torch

from .errors import BackendError

# One operation for every folder of kernels, each of which has a specification, ``naive.py``.
OPERATIONS = (
    "tensor_product",
    "tabulated_product",
    "radial_table",
    "edge_basis",
    "irreps_linear",
    "gate",
    "message_passing",
    "charge_equilibration",
    "ewald",
    "ewald_mesh",
)


@dataclass(frozen=True)
class Backend:
    """A named set of implementations.

    Attributes:
        implements: operation -> "module:attribute". ``tensor_product`` is a factory that takes a ``Program``, a device
            and a float type and returns a module, ``tabulated_product`` one that takes a ``Program``; ``ewald_mesh`` is
            a pair of functions; the other operations are plain functions.
        obstacle: given a device and a float type, says why the backend cannot serve there, or returns None.
        executor: "module:attribute" of what evaluates whole models faster than operation by operation, or None.
    """

    name: str
    implements: dict[str, str]
    obstacle: Callable[[torch.device, torch.dtype], str | None]
    executor: str | None = None


def _cuequivariance_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if find_spec("cuequivariance_torch") is None:
        return "the package cuequivariance-torch is not installed (pip install 'fastlr[cuequivariance]')"
    if device.type == "cuda" and find_spec("cuequivariance_ops_torch") is None:
        return "its CUDA kernels are not installed (pip install cuequivariance-ops-torch-cu12)"
    return None


def _cpu_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if device.type == "cpu" else f"its kernels run on CPUs, and the device is '{device}'"


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"its kernels run on GPUs, and the device is '{device}'"
    if find_spec("triton") is None:
        return "the package triton is not installed (pip install 'fastlr[triton]')"
    return None


_FUSED = {
    "tensor_product": "fastlr.backends:_fused_tensor_product",
    "tabulated_product": "fastlr.kernels.tabulated_product.op:TabulatedConvolution",
    "radial_table": "fastlr.kernels.radial_table.op:interpolate",
    "edge_basis": "fastlr.kernels.edge_basis.op:edge_basis",
    "irreps_linear": "fastlr.kernels.irreps_linear.op:irreps_linear",
    "gate": "fastlr.kernels.gate.op:gate",
    "charge_equilibration": "fastlr.kernels.charge_solver.op:equilibrate",
    "ewald": "fastlr.kernels.ewald.coulomb:coulomb_energy",
    "ewald_mesh": "fastlr.kernels.ewald_mesh.op:MESH",
}
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "reference",
            {
                "tensor_product": "fastlr.backends:_reference_tensor_product",
                "tabulated_product": "fastlr.kernels.tabulated_product.naive:NaiveTabulatedConvolution",
                "radial_table": "fastlr.kernels.radial_table.naive:interpolate",
                "edge_basis": "fastlr.kernels.edge_basis.naive:edge_basis",
                "irreps_linear": "fastlr.kernels.irreps_linear.naive:irreps_linear",
                "gate": "fastlr.kernels.gate.naive:gate",
                "message_passing": "fastlr.kernels.message_passing.naive:message_passing",
                "charge_equilibration": "fastlr.kernels.charge_solver.naive:equilibrate",
                "ewald": "fastlr.kernels.ewald.naive:coulomb_energy",
                "ewald_mesh": "fastlr.kernels.ewald_mesh.naive:MESH",
            },
            lambda device, dtype: None,
        ),
        Backend(
            "cuequivariance",
            {"tensor_product": "fastlr.backends:_cuequivariance_tensor_product"},
            _cuequivariance_obstacle,
        ),
        Backend("triton", _FUSED, _triton_obstacle, "fastlr.engine.captured:Captured"),
        Backend(
            "cpu",
            {**_FUSED, "message_passing": "fastlr.kernels.message_passing.op:message_passing"},
            _cpu_obstacle,
            "fastlr.engine.plan:Plan",
        ),
    )
}

# What "auto" tries, in this order, on each kind of device.
PREFERENCE = {"cuda": ("triton", "cuequivariance", "reference"), "cpu": ("cpu", "reference")}


def _reference_tensor_product(program, device, dtype):
    from fastlr.kernels.tensor_product.naive import NaiveConvolution

    return NaiveConvolution(program).to(device)


def _fused_tensor_product(program, device, dtype):
    from fastlr.kernels.tensor_product.op import FusedConvolution

    return FusedConvolution(program)


def _cuequivariance_tensor_product(program, device, dtype):
    from fastlr.kernels.tensor_product.cuequivariance import CuEquivarianceConvolution

    method = "fused_tp" if device.type == "cuda" else "naive"
    return CuEquivarianceConvolution(program, method, dtype).to(device)


@dataclass(frozen=True)
class Operations:
    """The implementations a model runs on: one backend name an operation, for one device and float type.

    ``left_out`` says why an operation that the backend offers is done by ``reference`` all the same.
    """

    backend: str
    chosen: dict[str, str]
    device: torch.device
    dtype: torch.dtype
    left_out: dict[str, str] = field(default_factory=dict)

    def function(self, operation: str):
        """What serves ``operation``: a function, or for tensor products a factory of modules."""
        return _named(BACKENDS[self.chosen[operation]].implements[operation])

    @property
    def executor(self):
        """The class that evaluates whole models on this backend, or None."""
        name = BACKENDS[self.backend].executor
        return None if name is None else _named(name)

    def tensor_product(self, program) -> torch.nn.Module:
        """A module that convolves according to ``program``."""
        return self.function("tensor_product")(program, self.device, self.dtype)

    @property
    def edge_basis(self):
        """See ``kernels/edge_basis/naive.py``."""
        return self.function("edge_basis")

    @property
    def irreps_linear(self):
        """See ``kernels/irreps_linear/naive.py``."""
        return self.function("irreps_linear")

    @property
    def gate(self):
        """See ``kernels/gate/naive.py``."""
        return self.function("gate")

    def tabulated_product(self, program) -> torch.nn.Module:
        """A module that convolves according to ``program`` with weights from a table."""
        return self.function("tabulated_product")(program).to(self.device)

    def offers(self, operation: str) -> bool:
        """Whether the named backend itself serves ``operation``."""
        return self.chosen[operation] == self.backend

    @property
    def charge_equilibration(self):
        """See ``kernels/charge_solver/naive.py``."""
        return self.function("charge_equilibration")

    def table(self) -> list[tuple[str, str, str]]:
        """(operation, backend that serves it, remark) for every operation."""
        rows = []
        for operation in OPERATIONS:
            served_by = self.chosen[operation]
            remark = f"{self.backend} does not offer this operation"
            if operation in self.left_out:
                remark = f"not by {self.backend}: {self.left_out[operation]}"
            rows.append((operation, served_by, "" if served_by == self.backend else remark))
        return rows


class NoOperations:
    """A stand-in for the kernels of layers during pruning."""

    def tensor_product(self, program) -> torch.nn.Module:
        return torch.nn.Identity()

    tabulated_product = tensor_product


def _named(name: str):
    """The object called "module:attribute"."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def obstacle(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str | None:
    """Why backend ``name`` cannot serve on this machine, or None if it can."""
    if not isinstance(name, str) or name not in BACKENDS:
        return f"there is no such backend; there are {', '.join(BACKENDS)}"
    return BACKENDS[name].obstacle(torch.device(device), dtype)


def resolve(
    backend: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    left_out: dict[str, str] | None = None,
) -> Operations:
    """Decide which implementation serves each operation.

    Args:
        backend: a name in ``BACKENDS``, or "auto" for the fastest that can serve.
        device: where the model runs.
        dtype: the model's float type.
        left_out: operations that ``reference`` is to do in any case, and why.

    Raises:
        BackendError: the named backend does not exist or cannot serve here; the message says why.
    """
    device = torch.device(device)
    if backend == "auto":
        backend = next(
            name for name in PREFERENCE.get(device.type, ("reference",)) if not obstacle(name, device, dtype)
        )
    else:
        why_not = obstacle(backend, device, dtype)
        if why_not:
            raise BackendError(f"backend {str(backend)!r:.50} cannot serve on {device}: {why_not}")
    left_out = left_out or {}
    offered = set(BACKENDS[backend].implements) - set(left_out)
    chosen = {operation: backend if operation in offered else "reference" for operation in OPERATIONS}
    return Operations(backend, chosen, device, dtype, left_out)
