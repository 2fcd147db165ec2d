"""Operations of a backend beside their specification in float64, in values and derivatives, on random numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastlr.backends import Operations, resolve
from fastlr.constants import COULOMB_CONSTANT
from fastlr.errors import BackendError
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.gate.layout import GateLayout
from fastlr.kernels.irreps_linear.layout import Layout
from fastlr.kernels.tensor_product.program import Program
from fastlr.numerics import relative_rms

# Largest accepted relative root-mean-square error against the specification in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
NODES, EDGES, INTERVALS = 5, 17, 9  # of the graphs and tables that operations are tried on


@dataclass(frozen=True)
class Parity:
    """Relative RMS error of one operation's values and derivatives on random input."""

    operation: str
    backend: str
    error: float


class Trial(NamedTuple):
    """An operation to be compared.

    Attributes:
        run: (operations, leaves) -> results, which are differentiable in the leaves.
        leaves: float64, to be rounded to the operations' float type.
        wide: further leaves, which stay float64.
    """

    run: Callable[[Operations, Sequence[Tensor]], Sequence[Tensor]]
    leaves: list[Tensor]
    wide: list[Tensor]


class Parts(NamedTuple):
    """What operations are tried with: those of a model, or a typical one."""

    programs: list[Program]
    maps: list[Layout]
    gates: list[GateLayout]
    shapes: list[str]  # keys of ``LayerShape``
    r_max: float
    num_bessels: int
    cutoff_p: float
    l_max: int


def error_of(trial: Trial, operations: Operations, order: int = 1) -> float:
    """Worst relative RMS error of a trial's results, and of derivatives of their random sums up to ``order``."""
    dtype, device = operations.dtype, operations.device
    rounded = [leaf.to(dtype) for leaf in trial.leaves]
    found = _derivatives(trial, operations, [leaf.to(device) for leaf in (*rounded, *trial.wide)], order)
    exact = resolve("reference", "cpu", torch.float64)
    expected = _derivatives(trial, exact, [leaf.double() for leaf in (*rounded, *trial.wide)], order)
    return max(relative_rms(a.detach().cpu(), b.detach()) for a, b in zip(found, expected, strict=True))


def _derivatives(trial: Trial, operations: Operations, leaves: list[Tensor], order: int) -> list[Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        found = results = list(trial.run(operations, leaves))
        generator = torch.Generator().manual_seed(1)
        for k in range(order):
            total = sum((value * torch.randn(value.shape, generator=generator).to(value)).sum() for value in results)
            total = total + 0.0 * sum(leaf.sum() for leaf in leaves)  # results may depend on none of them
            results = list(torch.autograd.grad(total, leaves, create_graph=k + 1 < order, materialize_grads=True))
            found = [*found, *results]
    return found


def check_operations(
    model: torch.nn.Module, operations: Operations, only: Collection[str] | None = None, order: int = 1
) -> list[Parity]:
    """Measure every operation that a model's layers use and that is not the specification itself.

    Args:
        only: names of operations, if not all are to be measured.
        order: highest derivatives that are compared; two for training on forces.

    Raises:
        BackendError: an operation misses ``TOLERANCE``.
    """
    parts, charged = parts_of(model), hasattr(model, "equilibration")
    # the sums behind the charges are measured with them, as are those that only some structures need (``charges.py``)
    inside = {"ewald", "ewald_mesh", "message_passing"} | (set() if charged else {"charge_equilibration"})
    names = [name for name, backend, _ in operations.table() if backend != "reference" and name not in inside]
    return _measured(parts, operations, [name for name in names if only is None or name in only], order)


def check_backend(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Parity]:
    """Measure all operations of a backend on a small typical layer, for ``fastlr doctor``.

    Raises:
        BackendError: it cannot serve here, or misses ``TOLERANCE``.
    """
    operations = resolve(name, device, dtype)
    names = [operation for operation, served_by, _ in operations.table() if served_by == name]
    return _measured(typical_parts(), operations, names, 1)


def _measured(parts: Parts, operations: Operations, names: Iterable[str], order: int) -> list[Parity]:
    rows = []
    for name in names:
        if name not in _TRIALS:
            raise BackendError(f"backend '{operations.backend}' offers {name}, which no parity check covers")
        errors = [error_of(trial, operations, order) for trial in _TRIALS[name](parts)]
        parity = Parity(name, operations.chosen[name], max(errors, default=0.0))
        if not all(error <= TOLERANCE[operations.dtype] for error in errors):
            raise BackendError(
                f"backend '{parity.backend}' fails the parity check: {name} differs from the reference by "
                f"{parity.error:.1e} (allowed: {TOLERANCE[operations.dtype]:.0e}); choose another backend"
            )
        rows.append(parity)
    return rows


def parts_of(model: torch.nn.Module) -> Parts:
    """What the layers of a model are made of."""
    from fastlr.nn.gate import Gate
    from fastlr.nn.interaction import InteractionLayer
    from fastlr.nn.linear import Linear, SelfConnection

    modules, config = list(model.modules()), model.config
    maps = {m.layout: None for m in modules if isinstance(m, Linear)}
    maps |= {m.sum_of(2): None for m in modules if isinstance(m, SelfConnection)}
    return Parts(
        list({m.program.key: m.program for m in modules if isinstance(m, InteractionLayer)}.values()),
        [Layout.from_key(key) for key in maps],
        list({m.layout.key: m.layout for m in modules if isinstance(m, Gate)}.values()),
        [],
        config.r_max,
        config.num_bessels,
        config.cutoff_p,
        config.l_max,
    )


def typical_parts() -> Parts:
    """A layer of few channels."""
    from fastlr.kernels.message_passing.shape import LayerShape
    from fastlr.nn.gate import Gate

    gate = Gate("4x0e+4x1o+4x2e")
    program = Program("4x0e+4x1o+4x2e", "1x0e+1x1o+1x2e", str(gate.irreps_in))
    linear, connection = (Layout.of(irreps, gate.irreps_in) for irreps in (program.irreps_out, program.irreps_in))
    shape = LayerShape(program, linear, gate.layout, connection, 1, False)
    return Parts([program], [linear, connection], [gate.layout], [shape.key], 5.0, 8, 6.0, 2)


def _random() -> Callable[..., Tensor]:
    """Draws normal numbers of a shape, float64, the same ones in each process."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _edges(nodes: int = NODES, edges: int = EDGES) -> Adjacency:
    generator = torch.Generator().manual_seed(0)
    return Adjacency.from_edges(torch.randint(nodes, (2, edges), generator=generator), nodes)


def _tensor_product(parts: Parts) -> Iterable[Trial]:
    for program in parts.programs:
        randn, edges = _random(), _edges()
        widths = (NODES, program.irreps_in.dim), (EDGES, program.irreps_edge.dim), (EDGES, program.weight_numel)

        def run(operations, leaves, program=program, edges=edges):
            return [operations.tensor_product(program)(*leaves, edges.to(operations.device))]

        yield Trial(run, [randn(*shape) for shape in widths], [])


def _intervals(count: int) -> tuple[Tensor, Tensor]:
    """Spline coefficients (count, 6) float64, and the intervals, of random places in a table."""
    from fastlr.kernels.radial_table.intervals import interval_of
    from fastlr.kernels.radial_table.naive import spline_coefficients

    generator = torch.Generator().manual_seed(0)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * INTERVALS
    interval = interval_of(places, INTERVALS)
    return spline_coefficients(places - interval), interval


def _tabulated_product(parts: Parts) -> Iterable[Trial]:
    for program in parts.programs:
        randn, edges = _random(), _edges()
        coefficients, interval = _intervals(EDGES)
        widths = (NODES, program.irreps_in.dim), (EDGES, program.irreps_edge.dim)
        x, angular, table = (randn(*shape) for shape in (*widths, (INTERVALS + 5, program.weight_numel)))

        def run(operations, leaves, program=program, edges=edges, interval=interval):
            device = operations.device
            return [operations.tabulated_product(program)(*leaves, interval.to(device), edges.to(device))]

        yield Trial(run, [x, angular, coefficients, table], [])


def _radial_table(parts: Parts) -> Iterable[Trial]:
    for width in sorted({program.weight_numel for program in parts.programs}):
        coefficients, interval = _intervals(EDGES)

        def run(operations, leaves, interval=interval):
            return [operations.function("radial_table")(*leaves, interval.to(operations.device))]

        yield Trial(run, [coefficients, _random()(INTERVALS + 5, width)], [])


def _edge_basis(parts: Parts) -> Iterable[Trial]:
    directions = torch.nn.functional.normalize(_random()(19, 3), dim=1)
    vectors = directions * torch.linspace(0.3, 1.05, 19, dtype=torch.float64)[:, None] * parts.r_max

    def run(operations, leaves):
        roots = torch.arange(1, parts.num_bessels + 1, dtype=torch.float64, device=operations.device)
        return operations.edge_basis(leaves[0], parts.r_max, roots, parts.cutoff_p, parts.l_max, operations.dtype)

    yield Trial(run, [], [vectors])


def _irreps_linear(parts: Parts) -> Iterable[Trial]:
    for layout in parts.maps:
        randn = _random()

        def run(operations, leaves, layout=layout):
            return [operations.irreps_linear(*leaves, layout.key, False)]

        yield Trial(run, [randn(NODES, layout.dim_in), randn(layout.num_weights)], [])


def _gate(parts: Parts) -> Iterable[Trial]:
    for layout in parts.gates:

        def run(operations, leaves, layout=layout):
            return [operations.gate(leaves[0], layout.key)]

        yield Trial(run, [_random()(NODES, layout.dim_in)], [])


def _message_passing(parts: Parts) -> Iterable[Trial]:
    from fastlr.kernels.message_passing.shape import EdgeData, LayerShape, LayerWeights

    for key in parts.shapes:
        shape, randn, edges = LayerShape.from_key(key), _random(), _edges()
        interval, program = _intervals(EDGES)[1], shape.program
        ptr, source, species = edges.row_ptr, edges.source[edges.row_edge], torch.arange(NODES) % 3
        maps = shape.connection.num_weights
        sizes = (INTERVALS + 5, program.weight_numel), (shape.linear.num_weights,), (3, maps), (shape.num_own, maps)
        weights = [randn(*size) for size in sizes]
        place = torch.linspace(0.1, 0.9, EDGES, dtype=torch.float64)
        widths = (NODES, program.irreps_in.dim), (NODES, shape.connection.dim_in), (NODES, shape.num_own)
        leaves = [randn(*size) for size in (*widths, (EDGES, program.irreps_edge.dim))]

        def run(operations, leaves, key=key, ptr=ptr, source=source, interval=interval, species=species, known=weights):
            h, x, own, harmonics, place = leaves
            data = EdgeData(ptr[:-1].clone(), ptr[1:].clone(), source, harmonics, place, interval)
            # rounded like the leaves: the exact result is that of the rounded weights
            cast = LayerWeights(*(weight.to(torch.float32).to(operations.dtype) for weight in known))
            return [operations.function("message_passing")(h, x, own, data, species, cast, key)]

        yield Trial(run, [*leaves, place], [])


def coulomb_problem():
    """A molecule, a cell and a slab of a few Gaussian charges: positions, squared widths, cells, the structure of each
    atom, first atoms, and tables for sums to rounding."""
    from fastlr.kernels.ewald.tables import CoulombTables, coulomb_tables

    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    sizes, parts = (4, 3, 5), []
    cells = torch.eye(3, dtype=torch.float64) * 4.0 + rand(3, 3, 3)
    positions, widths = rand(sum(sizes), 3) * 4.0, 0.4 + rand(sum(sizes))
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    for k, pbc in enumerate(([0, 0, 0], [1, 1, 1], [1, 1, 0])):
        own = slice(ptr[k], ptr[k + 1])
        arrays = (tensor.numpy() for tensor in (positions[own], cells[k], torch.tensor(pbc), widths[own]))
        parts.append(coulomb_tables(*arrays, accuracy=1e-15))
    batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    return positions, widths**2, cells, batch, ptr, CoulombTables.join(parts)


def _charge_equilibration(parts: Parts) -> Iterable[Trial]:
    from fastlr.kernels.ewald.system import System

    positions, squares, cells, batch, ptr, tables = coulomb_problem()
    chi, hardness = _random()(len(batch)), 5.0 + squares
    total = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)

    def run(operations, leaves):
        x, a, cell, chi, hardness, total = leaves
        system = System.of(x, a, cell, *(t.to(operations.device) for t in (batch, ptr, tables)))
        q, energy, _ = operations.charge_equilibration(system, chi, hardness, total, COULOMB_CONSTANT)
        return q, energy

    yield Trial(run, [], [positions, squares, cells, chi, hardness, total])


def _ewald(parts: Parts) -> Iterable[Trial]:
    from fastlr.kernels.ewald.system import System

    positions, squares, cells, batch, ptr, tables = coulomb_problem()

    def run(operations, leaves):
        x, a, cell, q = leaves
        system = System.of(x, a, cell, *(t.to(operations.device) for t in (batch, ptr, tables)))
        return [operations.function("ewald")(q, system)]

    yield Trial(run, [], [positions, squares, cells, _random()(len(batch))])


def _ewald_mesh(parts: Parts) -> Iterable[Trial]:
    from fastlr.kernels.ewald_mesh.naive import ORDERS

    dims, randn = (9, 8, 11), _random()
    x = torch.rand(NODES, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(dims)
    for p in ORDERS:

        def run(operations, leaves, p=p):
            x, mesh, charges = leaves
            gather, spread = operations.function("ewald_mesh")
            return gather(mesh, x, 0, p), spread(charges, x, dims, 0, p)

        yield Trial(run, [], [x, randn(*dims), randn(NODES, 1)])


_TRIALS = {
    "tensor_product": _tensor_product,
    "tabulated_product": _tabulated_product,
    "radial_table": _radial_table,
    "edge_basis": _edge_basis,
    "irreps_linear": _irreps_linear,
    "gate": _gate,
    "message_passing": _message_passing,
    "charge_equilibration": _charge_equilibration,
    "ewald": _ewald,
    "ewald_mesh": _ewald_mesh,
}
