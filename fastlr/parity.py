"""Proof that the active kernels compute what the reference computes, measured when a model is loaded."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from .backends import Operations, resolve
from .constants import COULOMB_CONSTANT
from .errors import BackendError
from .kernels.adjacency import Adjacency
from .kernels.ewald.system import System
from .kernels.ewald.tables import CoulombTables, coulomb_tables
from .kernels.tensor_product.program import Program
from .nn.charge_equilibration import ChargeEquilibration
from .nn.interaction import InteractionLayer

# Largest accepted relative root-mean-square error against the reference in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Parity:
    """Relative RMS error of one operation's values and first derivatives on random input."""

    operation: str
    backend: str
    error: float


def relative_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    """|value - reference| / |reference| in the 2-norm, zero for two empty or zero tensors."""
    reference = reference.double()
    scale = torch.linalg.vector_norm(reference)
    error = torch.linalg.vector_norm(value.double().to(reference.device) - reference)
    return float(error / scale) if scale > 0 else float(error)


def tensor_product_error(convolution: torch.nn.Module, program: Program, device, dtype) -> float:
    """Worst relative RMS error of a convolution and its three gradients on a small random graph."""
    from .kernels.tensor_product.naive import NaiveConvolution

    generator = torch.Generator().manual_seed(0)
    num_nodes, num_edges = 5, 17
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    edges = Adjacency.from_edges(edge_index, num_nodes)
    inputs = [
        torch.randn(rows, columns, generator=generator).to(dtype)
        for rows, columns in (
            (num_nodes, program.irreps_in.dim),
            (num_edges, program.irreps_edge.dim),
            (num_edges, program.weight_numel),
        )
    ]
    probe = torch.randn(num_nodes, program.irreps_out.dim, generator=generator).to(dtype)

    def values_and_gradients(function, device, dtype):
        leaves = [x.to(device, dtype).requires_grad_(True) for x in inputs]
        z = function(*leaves, edges.to(device))
        return [z, *torch.autograd.grad(z, leaves, probe.to(device, dtype))]

    active = values_and_gradients(convolution, device, dtype)
    reference = values_and_gradients(NaiveConvolution(program), "cpu", torch.float64)
    return max(relative_rms(a.detach().cpu(), b.detach()) for a, b in zip(active, reference, strict=True))


def edge_basis_error(operations: Operations, r_max: float, num_bessels: int, p: float, l_max: int) -> float:
    """Worst relative RMS error of the edge basis and its gradient on random edges within the cutoff."""
    from .kernels.edge_basis.naive import edge_basis

    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(19, 3, generator=generator, dtype=torch.float64), dim=1)
    vectors = directions * torch.linspace(0.3, 1.05, 19, dtype=torch.float64)[:, None] * r_max
    probes = [torch.randn(19, n, generator=generator).to(operations.dtype) for n in ((l_max + 1) ** 2, num_bessels)]

    def values_and_gradient(function, device, dtype):
        leaf = vectors.to(device).requires_grad_(True)
        roots = torch.arange(1, num_bessels + 1, dtype=torch.float64, device=device)
        values = function(leaf, r_max, roots, p, l_max, dtype)
        scalar = sum((value * probe.to(device, dtype)).sum() for value, probe in zip(values, probes, strict=True))
        return [*values, *torch.autograd.grad(scalar, leaf)]

    active = values_and_gradient(operations.edge_basis, operations.device, operations.dtype)
    reference = values_and_gradient(edge_basis, "cpu", torch.float64)
    return max(relative_rms(a.detach().cpu(), b.detach()) for a, b in zip(active, reference, strict=True))


def tabulated_product_error(convolution: torch.nn.Module, program: Program, device, dtype) -> float:
    """Worst relative RMS error of a convolution with weights from a random table, and of its four gradients."""
    from .kernels.radial_table.intervals import interval_of
    from .kernels.radial_table.naive import spline_coefficients
    from .kernels.tabulated_product.naive import NaiveTabulatedConvolution

    generator = torch.Generator().manual_seed(0)
    num_nodes, num_edges, num_intervals = 5, 17, 9
    edges = Adjacency.from_edges(torch.randint(num_nodes, (2, num_edges), generator=generator), num_nodes)
    places = torch.rand(num_edges, generator=generator, dtype=torch.float64) * num_intervals
    interval = interval_of(places, num_intervals)
    shapes = (
        (num_nodes, program.irreps_in.dim),
        (num_edges, program.irreps_edge.dim),
        (num_intervals + 5, program.weight_numel),
        (num_nodes, program.irreps_out.dim),
    )
    x, angular, table, probe = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    inputs = [x, angular, spline_coefficients(places - interval).to(dtype), table]

    def values_and_gradients(function, device, dtype):
        leaves = [x.to(device, dtype).requires_grad_(True) for x in inputs]
        z = function(*leaves, interval.to(device), edges.to(device))
        return [z, *torch.autograd.grad(z, leaves, probe.to(device, dtype))]

    active = values_and_gradients(convolution, device, dtype)
    reference = values_and_gradients(NaiveTabulatedConvolution(program), "cpu", torch.float64)
    return max(relative_rms(a.detach().cpu(), b.detach()) for a, b in zip(active, reference, strict=True))


def charge_equilibration_error(operations: Operations) -> float:
    """Worst relative RMS error of charges and energy, and of the gradients of both, of a molecule and two cells."""
    from .kernels.charge_solver.naive import equilibrate

    generator = torch.Generator().manual_seed(0)
    sizes, parts = (4, 3, 5), []
    cells = torch.eye(3, dtype=torch.float64) * 4.0 + torch.rand(3, 3, 3, generator=generator, dtype=torch.float64)
    positions = torch.rand(sum(sizes), 3, generator=generator, dtype=torch.float64) * 4.0
    widths = 0.4 + torch.rand(sum(sizes), generator=generator, dtype=torch.float64)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    for k, pbc in enumerate(([0, 0, 0], [1, 1, 1], [1, 1, 0])):
        own = slice(ptr[k], ptr[k + 1])
        arrays = (tensor.numpy() for tensor in (positions[own], cells[k], torch.tensor(pbc), widths[own]))
        parts.append(coulomb_tables(*arrays, accuracy=1e-15))
    tables, batch = CoulombTables.join(parts), torch.arange(3).repeat_interleave(torch.tensor(sizes))
    chi, hardness = torch.randn(len(batch), generator=generator).double(), 5.0 + widths
    total = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    probe = torch.randn(len(batch), generator=generator).double()

    def values_and_gradients(function, device):
        leaves = [x.to(device).requires_grad_(True) for x in (positions, widths**2, cells, chi, hardness, total)]
        x, a, cell, chi_, hardness_, total_ = leaves
        system = System.of(x, a, cell, batch.to(device), ptr.to(device), tables.to(device))
        q, energy, _ = function(system, chi_, hardness_, total_, COULOMB_CONSTANT)
        return [q, energy, *torch.autograd.grad((q * probe.to(device)).sum() + energy.sum(), leaves)]

    active = values_and_gradients(operations.charge_equilibration, operations.device)
    reference = values_and_gradients(equilibrate, "cpu")
    return max(relative_rms(a.detach().cpu(), b.detach()) for a, b in zip(active, reference, strict=True))


def check_parity(model: torch.nn.Module, operations: Operations, only: Collection[str] | None = None) -> list[Parity]:
    """Measure every operation that is not the reference's own.

    Args:
        only: names of operations, if not all are to be measured.

    Raises:
        BackendError: an operation misses ``TOLERANCE``.
    """
    rows = []
    for operation, backend, _ in operations.table():
        if backend == "reference" or (only is not None and operation not in only):
            continue
        if operation == "tensor_product":
            error = max(
                tensor_product_error(layer.convolution, layer.program, operations.device, operations.dtype)
                for layer in _layers(model)
            )
        elif operation == "edge_basis":
            config = model.config
            error = edge_basis_error(operations, config.r_max, config.num_bessels, config.cutoff_p, config.l_max)
        elif operation == "tabulated_product":
            error = max(
                tabulated_product_error(layer.tabulated_convolution, layer.program, operations.device, operations.dtype)
                for layer in _layers(model)
            )
        elif operation == "charge_equilibration":
            charged = any(isinstance(module, ChargeEquilibration) for module in model.modules())
            if not charged:
                continue
            error = charge_equilibration_error(operations)
        else:
            raise BackendError(f"backend '{backend}' offers {operation}, which no parity check covers")
        rows.append(_accepted(Parity(operation, backend, error), operations.dtype))
    return rows


def check_backend(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Parity]:
    """Parity of a backend on a small typical program, for ``fastlr doctor``.

    Raises:
        BackendError: it cannot serve here, or misses ``TOLERANCE``.
    """
    operations = resolve(name, device, dtype)
    program = Program("4x0e+4x1o+4x2e", "1x0e+1x1o+1x2e", "1x0e+1x1o+1x2e")
    convolution, tabulated = operations.tensor_product(program), operations.tabulated_product(program)
    errors = {
        "tensor_product": tensor_product_error(convolution, program, operations.device, dtype),
        "edge_basis": edge_basis_error(operations, 5.0, 8, 6.0, 2),
        "tabulated_product": tabulated_product_error(tabulated, program, operations.device, dtype),
        "charge_equilibration": charge_equilibration_error(operations),
    }
    return [_accepted(Parity(name, operations.chosen[name], error), dtype) for name, error in errors.items()]


def _layers(model: torch.nn.Module) -> list[InteractionLayer]:
    return [module for module in model.modules() if isinstance(module, InteractionLayer)]


def _accepted(parity: Parity, dtype: torch.dtype) -> Parity:
    if not parity.error <= TOLERANCE[dtype]:
        raise BackendError(
            f"backend '{parity.backend}' fails the parity check: {parity.operation} differs from the reference by "
            f"{parity.error:.1e} (allowed: {TOLERANCE[dtype]:.0e}); choose another backend"
        )
    return parity
