"""The layer kernels, one by one, against the specification in float64."""

import pytest
import torch
from fastlr.kernels.gate.layout import GateLayout
from fastlr.kernels.irreps_linear.layout import Layout
from fastlr.kernels.irreps_linear.naive import transposed
from fastlr.kernels.message_passing import cpu, naive, op
from fastlr.kernels.message_passing.shape import EdgeData, LayerShape, LayerWeights
from fastlr.kernels.native import shares
from fastlr.kernels.radial_table.naive import ROWS
from fastlr.kernels.tensor_product.program import Program
from reference.models import small_model
from torch import library

from fastlr.engine.folding import fold_layers
from fastlr.engine.pruning import SCALAR, prune
from fastlr.nn.gate import Gate
from fastlr.numerics import relative_rms

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}
INTERVALS = 9
# irreps of h, harmonics, of the layer's result; whether there is a connection, further attributes, h by species
SHAPES = {
    "scalars": ("5x0e", "1x0e", "3x0e", True, 0, False),
    "vectors": ("7x0e+33x1o", "1x0e+1x1o", "17x0e+5x1o", True, 1, False),
    "both parities": ("3x0e+2x0o+4x1o+3x1e", "1x0e+1x1o+1x2e", "5x0e+3x0o+2x1o+3x1e+1x2e", True, 3, False),
    "by species": ("20x0e", "1x0e+1x1o+1x2e", "16x0e+9x1o+5x2e", False, 0, True),
    "unconnected": ("16x0e+16x1o+8x2e", "1x0e+1x1o+1x2e", "33x0e", False, 0, False),
}
GRAPHS = {"many": (13, 130), "one edge": (2, 1), "one atom": (1, 0), "no atoms": (0, 0)}  # atoms, edges


def layer_shape(h: str, harmonics: str, hidden: str, connected: bool, num_own: int, by_species: bool) -> LayerShape:
    gate = Gate(hidden)
    program = Program(h, harmonics, str(gate.irreps_in))
    connection = Layout.of(program.irreps_in, gate.irreps_in) if connected else None
    linear = Layout.of(program.irreps_out, gate.irreps_in)
    return LayerShape(program, linear, gate.layout, connection, num_own, by_species)


def random_inputs(shape: LayerShape, num_nodes: int, num_edges: int, num_species: int = 3):
    """Everything that a layer reads, float64, zero-mean; lists have gaps, and what lies there is NaN."""
    count = torch.bincount(torch.randint(max(num_nodes, 1), (num_edges,)), minlength=num_nodes)[:num_nodes]
    end = (count + 2).cumsum(0) - 2 if num_nodes else count
    begin, length = end - count, int(count.sum()) + 2 * num_nodes
    _, used = naive.entries(begin, end)

    def listed(*columns):
        values = torch.full((length, *columns), torch.nan, dtype=torch.float64)
        values[used] = torch.randn(len(used), *columns).double()
        return values

    place = listed()
    place[used] = torch.rand(len(used)).double()
    source, interval = torch.randint(max(num_nodes, 1), (length,)), torch.randint(INTERVALS, (length,))
    edges = EdgeData(begin, end, source, listed(shape.program.irreps_edge.dim), place, interval)
    width, maps = shape.program.irreps_in.dim, shape.connection.num_weights if shape.connection else 0
    h = torch.randn(num_species if shape.by_species else num_nodes, width).double()
    x = torch.randn(num_nodes, shape.connection.dim_in if shape.connection else 0).double()
    own = torch.randn(num_nodes, shape.num_own).double()
    weights = LayerWeights(
        *(torch.randn(*size).double() for size in (
            (INTERVALS + ROWS - 1, shape.program.weight_numel), (shape.linear.num_weights,), (num_species, maps),
            (shape.num_own, maps),
        ))
    )  # fmt: skip
    return h, x, own, edges, torch.randint(num_species, (num_nodes,)), weights


def cast(inputs, dtype):
    """The same in another float type."""

    def one(value):
        if isinstance(value, tuple):
            return type(value)(*map(one, value))
        return value.to(dtype) if value.is_floating_point() else value

    return [one(value) for value in inputs]


def derivatives(function, inputs, key: str, probes, order: int = 2) -> list[torch.Tensor]:
    """The result, its gradients by h, x, own attributes, harmonics and places, and the gradients of probes of these."""
    h, x, own, edges, species, weights = inputs
    leaves = [t.clone().requires_grad_() for t in (h, x, own, edges.harmonics, edges.place)]
    edges = edges._replace(harmonics=leaves[3], place=leaves[4])
    out = function(*leaves[:3], edges, species, weights, key)
    g = probes[0].to(out).requires_grad_()
    first = torch.autograd.grad(out, leaves, g, create_graph=order > 1, materialize_grads=True)
    if order == 1:
        return [out, *first]
    total = sum((value * probe.to(value)).nansum() for value, probe in zip(first, probes[1:], strict=True))
    second = torch.autograd.grad(total, [*leaves, g], materialize_grads=True)
    return [out, *first, *second]


def assert_same(found, expected, dtype):
    """Each tensor relative to its size; NaN in the gaps of lists may be anything."""
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert value.dtype == dtype
        assert value.shape == reference.shape
        known = ~(reference.isnan() | value.isnan())
        assert relative_rms(value[known].detach(), reference[known].detach()) < TOLERANCE[dtype], number


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("size", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("kind", SHAPES.values(), ids=SHAPES)
def test_layer_and_its_derivatives(kind, size, dtype):
    shape = layer_shape(*kind)
    inputs = random_inputs(shape, *size)
    probes = [torch.randn(size[0], shape.gate.dim_out).double()]
    probes += [torch.randn_like(t) for t in (*inputs[:3], inputs[3].harmonics, inputs[3].place)]
    if shape.by_species:  # rows by species have no gradient
        probes[1].zero_()
    found = derivatives(op.message_passing, cast(inputs, dtype), shape.key, probes)
    expected = derivatives(naive.message_passing, inputs, shape.key, probes)
    if shape.by_species:
        assert not found[1].any()
        found[1] = expected[1] = torch.zeros(0, dtype=dtype)
        found[6] = expected[6] = torch.zeros(0, dtype=dtype)  # of h, through the specification
    assert_same(found, expected, dtype)


def test_gradients_by_finite_differences():
    shape = layer_shape(*SHAPES["both parities"])
    h, x, own, edges, species, weights = random_inputs(shape, 4, 11)
    used = naive.entries(edges.begin, edges.end)[1]
    constant, harmonics = edges.harmonics.nan_to_num().split([1, 8], dim=1)  # the harmonic of degree zero is constant
    place = edges.place.nan_to_num()
    place[used] = place[used] * 0.8 + 0.1

    def layer(h, x, own, harmonics, place):
        given = edges._replace(harmonics=torch.cat([constant, harmonics], dim=1), place=place)
        return op.message_passing(h, x, own, given, species, weights, shape.key)

    leaves = [t.requires_grad_() for t in (h, x, own, harmonics, place)]
    assert torch.autograd.gradcheck(layer, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, leaves, fast_mode=True)


def test_operators_are_well_formed():
    shape = layer_shape(*SHAPES["vectors"])
    h, x, own, edges, species, weights = random_inputs(shape, 5, 12)
    edges = edges._replace(harmonics=edges.harmonics.nan_to_num(), place=edges.place.nan_to_num())
    begin, end, source, harmonics, place, interval = edges
    leaves = [t.requires_grad_() for t in (h, x, own, harmonics, place)]
    tensors = [*leaves, begin, end, source, interval, species, *weights]
    library.opcheck(
        op.message_passing_forward.overload, (tensors, shape.key), test_utils=("test_schema", "test_faketensor")
    )
    y, out = op.message_passing_forward(tensors, shape.key)
    arguments = [t.detach() for t in tensors], y.detach(), torch.randn_like(out).detach(), shape.key
    library.opcheck(op.message_passing_backward.overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("irreps", ["5x0e", "7x0e+33x1o+4x2e", "97x0e"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("num_nodes", [0, 1, 13])
def test_mix_and_collect(irreps, num_nodes, dtype):
    """The map in front of the convolution, and its gradient from copies of its rows."""
    irreps_in = Program(irreps, "1x0e", irreps).irreps_in
    layout = Layout.of(irreps_in, irreps_in)
    x, factors, weights = torch.randn(num_nodes, layout.dim_in), torch.randn(num_nodes), torch.randn(layout.num_weights)
    owner = torch.randint(max(num_nodes, 1), (3 * num_nodes,))
    copies, before = torch.randn(3 * num_nodes, layout.dim_out), torch.randn(num_nodes, layout.dim_in)
    exact = [t.double() for t in (x, factors, weights, copies, before)]
    x, factors, weights, copies, gradient = (t.to(dtype, copy=True) for t in exact)
    bounds = shares(num_nodes, 1)
    out = torch.empty_like(copies[:num_nodes])
    cpu.mix_call(layout, out, x, factors, weights)(bounds)
    leaf = exact[0].requires_grad_()
    expected = naive.mix(leaf, exact[1], exact[2], layout)
    assert relative_rms(out, expected.detach()) < TOLERANCE[dtype]

    ptr = torch.nn.functional.pad(torch.bincount(owner, minlength=num_nodes)[:num_nodes].cumsum(0), (1, 0))
    number, turned = torch.argsort(owner, stable=True), transposed(weights, layout)
    cpu.collect_call(layout, gradient, ptr, number, copies, factors, turned)(bounds)
    by_rows = torch.zeros_like(expected).index_add(0, owner, exact[3])
    (by_x,) = torch.autograd.grad(expected, leaf, by_rows, materialize_grads=True)
    assert relative_rms(gradient, exact[4] + by_x) < TOLERANCE[dtype]


@pytest.mark.parametrize("l_max", [0, 1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("size", GRAPHS.values(), ids=GRAPHS)
def test_edges_and_their_forces(size, dtype, l_max):
    """Edges beyond the cutoff are left out; forces and virial are the gradient by positions and by strain."""
    num_nodes, num_edges = size
    r_max, width = 2.0, (l_max + 1) ** 2
    positions, offset = torch.randn(num_nodes, 3).double(), torch.randn(num_edges, 3).double()
    destination = torch.randint(max(num_nodes, 1), (num_edges,)).sort().values
    ptr = torch.nn.functional.pad(torch.bincount(destination, minlength=num_nodes)[:num_nodes].cumsum(0), (1, 0))
    source, copy = torch.randint(max(num_nodes, 1), (num_edges,)), torch.randperm(num_edges)
    settings = torch.tensor([r_max**2, INTERVALS / r_max, INTERVALS - 1.0], dtype=torch.float64)

    def whole(count):
        return torch.full((count,), -1, dtype=torch.int64)

    shortest, copy_out, vector = torch.empty(num_nodes).double(), whole(num_edges), torch.empty(num_edges, 3).double()
    harmonics, place = torch.empty(num_edges, width, dtype=dtype), torch.empty(num_edges, dtype=dtype)
    edges = EdgeData(ptr[:-1].clone(), whole(num_nodes), whole(num_edges), harmonics, place, whole(num_edges))
    call = cpu.edges_call(l_max, positions, ptr, source, copy, offset, settings, shortest, copy_out, vector, edges)
    call(shares(num_nodes, 1))

    leaf = positions.clone().requires_grad_()
    kept, vectors, expected = naive.edge_data(leaf, ptr, source, offset, r_max, INTERVALS, l_max)
    at = naive.entries(edges.begin, edges.end)[1]
    assert 0 < len(kept) < num_edges or num_edges < 2
    for name in ("source", "interval"):
        assert torch.equal(getattr(edges, name)[at], getattr(expected, name))
    assert torch.equal(copy_out[at], copy[kept])
    for found, wanted in (
        (vector, vectors), (edges.harmonics, expected.harmonics), (edges.place, expected.place)
    ):  # fmt: skip
        assert relative_rms(found[at], wanted.detach()) < TOLERANCE[dtype] * (50 if found is edges.place else 1)

    by_harmonics, by_place = (torch.randn_like(t) for t in (harmonics, place))
    forces, virials = torch.empty(num_nodes, 3).double(), torch.empty(num_nodes, 9).double()
    copies = torch.zeros(num_edges, 3).double()
    arguments = edges, copy_out, vector, settings, by_harmonics, by_place, forces, virials, copies
    cpu.edge_forces_call(l_max, *arguments)(shares(num_nodes, 1))
    probe = (expected.harmonics * by_harmonics[at].double()).sum() + (expected.place * by_place[at].double()).sum()
    by_vector, gradient = torch.autograd.grad(probe, (vectors, leaf), materialize_grads=True)
    total = forces.index_add(0, source, copies[copy])
    assert relative_rms(total, -gradient) < TOLERANCE[torch.float64]
    virial = (vectors[:, :, None] * by_vector[:, None, :]).sum(dim=0).detach()
    assert relative_rms(virials.sum(dim=0).view(3, 3), virial) < TOLERANCE[torch.float64]


def test_wrong_inputs_are_refused():
    shape = layer_shape(*SHAPES["vectors"])
    h, x, own, edges, species, weights = random_inputs(shape, 5, 12)
    with pytest.raises(ValueError, match=r"h: expected \(5, 106\) of torch.float64, got \(5, 105\)"):
        op.message_passing(h[:, 1:], x, own, edges, species, weights, shape.key)
    with pytest.raises(ValueError, match=r"place: expected"):
        op.message_passing(h, x, own, edges._replace(place=edges.place.float()), species, weights, shape.key)
    with pytest.raises(ValueError, match="have no gradient"):
        trained = weights._replace(linear=weights.linear.requires_grad_())
        op.message_passing(h, x, own, edges, species, trained, shape.key)


@pytest.mark.parametrize("name", ["nequip", "lr", "lr-separate-stacks"])
def test_shapes_are_the_same_from_their_text(name):
    model = small_model(name)
    stack = model.stack if name == "nequip" else model.energy_stack
    layers, _ = prune(stack, {SCALAR})
    types = model.type_embedding.weight
    for layer in fold_layers(layers, stack.norm, model.edge_embedding, 8, types, torch.float64, name == "nequip"):
        assert LayerShape.from_key(layer.shape.key) == layer.shape
        assert GateLayout.from_key(layer.shape.gate.key) == layer.shape.gate
