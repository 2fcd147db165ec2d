"""The convolution with weights from a table against interpolation and convolution by the specification."""

from itertools import pairwise

import pytest
import torch
from fastlr.bench.problems import PROBLEMS, inputs
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.radial_table.intervals import interval_of
from fastlr.kernels.radial_table.naive import ROWS
from fastlr.kernels.tabulated_product import cpu, op
from fastlr.kernels.tabulated_product.naive import NaiveTabulatedConvolution
from fastlr.kernels.tabulated_product.op import TabulatedConvolution
from fastlr.kernels.tensor_product.program import Program
from torch import library

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SMALL = Program("3x0e+2x1o", "0e+1o", "0e+1o+1e")
# how paths are done is tested with the plain convolution; these differ in where weights begin and rows end
PROGRAMS = {name: PROBLEMS[name].reduced() for name in ("nequip-S", "nequip-M", "mace-medium")} | {
    "one channel": Program("1x0e+1x1o", "0e+1o", "0e+1o+1e"),
    "tails": Program("5x0e+37x1o+8x2e+17x1e", "0e+1o+2e", "0e+1o+1e+2e"),
    "unused edge degree": Program("3x0e", "0e+1o+2e", "0e"),
}


class Graph:
    """A random graph with lengths; node 1 has no edges, and neither has the last interval but one."""

    def __init__(self, num_nodes: int, num_edges: int, num_intervals: int = 7):
        edge_index = torch.randint(max(num_nodes, 1), (2, num_edges))
        if num_nodes > 2:
            edge_index[edge_index == 1] = 0
        self.edges = Adjacency.from_edges(edge_index, num_nodes)
        places = torch.rand(num_edges, dtype=torch.float64) * (num_intervals - 1)
        places = torch.where(places.floor() == num_intervals - 2, places + 1.0, places)
        self.interval, self.num_intervals = interval_of(places, num_intervals), num_intervals

    def to(self, device: str) -> tuple[torch.Tensor, Adjacency]:
        device = "cpu" if device == "interpreter" else device
        return self.interval.to(device), self.edges.to(device)

    def inputs(self, program: Program, dtype=torch.float64) -> list[torch.Tensor]:
        """x, Y, C and T."""
        num_nodes, num_edges = self.edges.row_ptr.shape[0] - 1, self.edges.source.shape[0]
        x, y, _ = inputs(program, num_nodes, num_edges, dtype)
        rows = self.num_intervals + ROWS - 1
        return [x, y, torch.randn(num_edges, ROWS, dtype=dtype), torch.randn(rows, program.weight_numel, dtype=dtype)]


# Of which gradients a second derivative is taken, and by what: all, and what training on forces does.
EVERYTHING, TRAINING = (range(4), range(5)), (range(3), (0, 3, 4))


def derivatives(convolution, leaves, g, probes, graph, second=EVERYTHING) -> list[torch.Tensor]:
    """z, its gradients by x, Y, C and T, and gradients of a probe of them by some of x, Y, C, T and g."""
    leaves, g = [leaf.clone().requires_grad_(True) for leaf in leaves], g.clone().requires_grad_(True)
    z = convolution(*leaves, *graph)
    of, by = second
    first = torch.autograd.grad(z, [leaves[k] for k in of], g, create_graph=True)
    change = torch.autograd.grad(first, [[*leaves, g][k] for k in by], [probes[k] for k in of])
    return [value.detach() for value in (z, *first, *change)]


def check(program: Program, graph: Graph, dtype, device: str = "cpu", second=EVERYTHING) -> None:
    leaves = graph.inputs(program, dtype)
    g = torch.randn(leaves[0].shape[0], program.irreps_out.dim, dtype=dtype)
    probes = [torch.randn_like(leaf) for leaf in leaves]
    place = "cpu" if device == "interpreter" else device
    there = [[tensor.to(place) for tensor in tensors] for tensors in (leaves, [g], probes)]
    values = derivatives(TabulatedConvolution(program), there[0], there[1][0], there[2], graph.to(device), second)
    exact = [[tensor.double() for tensor in tensors] for tensors in (leaves, [g], probes)]
    naive = NaiveTabulatedConvolution(program)
    references = derivatives(naive, exact[0], exact[1][0], exact[2], graph.to("cpu"), second)
    for number, (value, reference) in enumerate(zip(values, references, strict=True)):
        assert value.dtype == dtype
        assert value.shape == reference.shape
        error = torch.linalg.vector_norm(value.cpu().double() - reference)
        assert error <= TOLERANCE[dtype] * torch.linalg.vector_norm(reference), number


@DTYPES
@pytest.mark.parametrize("second", [EVERYTHING, TRAINING], ids=["everything", "training"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_all_derivatives(program, second, dtype, device):
    check(program, Graph(3, 4) if device == "interpreter" else Graph(5, 11), dtype, device, second)


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(0, 0), (1, 0), (3, 0), (1, 1), (1, 2000), (2, 40), (40, 1900)])
def test_sizes(num_nodes, num_edges, device):
    """No nodes, no edges, one node that is its own neighbour, degree 2,000, several parts of edges."""
    if device == "interpreter" and num_edges > 40:
        pytest.skip("the interpreter takes three minutes; smaller cases are tested in it")
    check(SMALL, Graph(num_nodes, num_edges), torch.float64, device, TRAINING)


def test_gradients_against_finite_differences():
    graph = Graph(4, 7)
    leaves = [leaf.requires_grad_(True) for leaf in graph.inputs(SMALL)]
    convolution = TabulatedConvolution(SMALL)
    assert torch.autograd.gradcheck(lambda *leaves: convolution(*leaves, *graph.to("cpu")), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *leaves: convolution(*leaves, *graph.to("cpu")), leaves, fast_mode=True)


def test_third_derivative():
    graph = Graph(4, 9)
    leaves = graph.inputs(SMALL)

    def third(convolution):
        own = [leaf.clone().requires_grad_(True) for leaf in leaves]
        g = torch.ones(4, SMALL.irreps_out.dim, dtype=torch.float64, requires_grad=True)
        z = convolution(*own, *graph.to("cpu"))
        first = torch.autograd.grad(z, own, g * z, create_graph=True)  # the gradient depends on the arguments, too
        second = torch.autograd.grad(first, (*own, g), own, create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in second), (*own, g))

    values, references = third(TabulatedConvolution(SMALL)), third(NaiveTabulatedConvolution(SMALL))
    for value, reference in zip(values, references, strict=True):
        assert torch.linalg.vector_norm(value - reference) < 1e-12 * torch.linalg.vector_norm(reference)


def test_training_writes_no_weights(monkeypatch):
    """Energy, forces, and the gradient of a loss of both by what is trained never leave the three kernels."""

    def never(*_):
        raise AssertionError("weights of edges were written")

    for module, name in ((op.radial_table, "values"), (op.tensor_product, "tensor_product_backward")):
        monkeypatch.setattr(module, name, never)
    graph = Graph(4, 9)
    x, y, c, table = (leaf.requires_grad_(True) for leaf in graph.inputs(SMALL))
    z = TabulatedConvolution(SMALL)(x, y, c, table, *graph.to("cpu"))
    by_edges = torch.autograd.grad((z**2).sum(), (y, c), create_graph=True)
    loss = z.sum() + sum((part**2).sum() for part in by_edges)
    gradients = torch.autograd.grad(loss, (x, table), retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with pytest.raises(AssertionError, match="weights of edges"):  # a Hessian does leave them
        torch.autograd.grad(loss, y)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (1, 2), (0, 3)])
def test_gradients_of_some_inputs(needed, device):
    graph = Graph(4, 6)
    leaves = graph.inputs(SMALL)

    def gradients(convolution, device):
        place = "cpu" if device == "interpreter" else device
        own = [leaf.to(place, copy=True).requires_grad_(k in needed) for k, leaf in enumerate(leaves)]
        return torch.autograd.grad((convolution(*own, *graph.to(device)) ** 2).sum(), [own[k] for k in needed])

    values, references = (
        gradients(TabulatedConvolution(SMALL), device),
        gradients(NaiveTabulatedConvolution(SMALL), "cpu"),
    )
    for value, reference in zip(values, references, strict=True):
        assert torch.linalg.vector_norm(value.cpu() - reference) < 1e-12 * torch.linalg.vector_norm(reference)


def test_every_output_is_written(device, monkeypatch):
    """Memory handed to the kernels is full of NaN; isolated nodes and unused edge degrees must come out zero."""
    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty_like")):
        original = getattr(owner, name)

        def poisoned(*args, original=original, **kwargs):
            tensor = original(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(owner, name, poisoned)
    program, graph = PROGRAMS["unused edge degree"], Graph(4, 5)
    place = "cpu" if device == "interpreter" else device
    leaves = [leaf.to(place).requires_grad_(True) for leaf in graph.inputs(program)]
    z = TabulatedConvolution(program)(*leaves, *graph.to(device))
    gradients = torch.autograd.grad(z.sum(), leaves)
    assert not z[1].any()
    assert torch.isfinite(z).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[1][:, 1:].any()


def test_same_bits_every_time(monkeypatch):
    monkeypatch.setattr(cpu, "EDGES_OF_PART", 64)
    program, graph = PROBLEMS["nequip-l2-32"].program, Graph(40, 700)
    leaves = graph.inputs(program, torch.float32)
    g, probes = torch.randn(40, program.irreps_out.dim), [torch.randn_like(leaf) for leaf in leaves]
    results = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            convolution = TabulatedConvolution(program)
            results.append(derivatives(convolution, leaves, g, probes, graph.to("cpu"), TRAINING))
    finally:
        torch.set_num_threads(1)
    for one, other in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y, c, t: (x[:, 1:], y, c, t), "x: expected"),
        (lambda x, y, c, t: (x, y[1:], c, t), "edge attributes: expected"),
        (lambda x, y, c, t: (x, y, c[:, :-1], t), "coefficients: expected"),
        (lambda x, y, c, t: (x, y, c, t[:, 1:]), "table: expected"),
        (lambda x, y, c, t: (x, y, c, t[:5]), "table: expected"),
        (lambda x, y, c, t: (x.float(), y, c, t), "x: expected"),
        (lambda x, y, c, t: (x.half(), y.half(), c.half(), t.half()), "for float32 and float64"),
    ],
)
def test_wrong_inputs(spoil, message):
    graph = Graph(4, 6)
    with pytest.raises(ValueError, match=message):
        TabulatedConvolution(SMALL)(*spoil(*graph.inputs(SMALL)), *graph.to("cpu"))


def test_intervals_of_other_edges():
    graph, other = Graph(4, 6), Graph(4, 5)
    with pytest.raises(ValueError, match="interval: expected"):
        TabulatedConvolution(SMALL)(*graph.inputs(SMALL), other.interval, graph.edges)


@pytest.mark.parametrize("change", [-8, 8])
def test_intervals_beyond_the_table(change):
    graph = Graph(4, 6)
    with pytest.raises(ValueError, match="edges read rows"):
        TabulatedConvolution(SMALL)(*graph.inputs(SMALL), graph.interval + change, graph.edges)


def test_inputs_need_not_be_contiguous():
    graph = Graph(4, 6)
    leaves, convolution = graph.inputs(SMALL), TabulatedConvolution(SMALL)
    strided = [leaf.T.contiguous().T for leaf in leaves]
    assert torch.equal(convolution(*strided, *graph.to("cpu")), convolution(*leaves, *graph.to("cpu")))


class TestPyTorch:
    """What PyTorch asks of an operator."""

    @pytest.fixture
    def arguments(self):
        graph = Graph(4, 6)
        return [leaf.requires_grad_(True) for leaf in graph.inputs(SMALL)], list(graph.edges), graph.interval

    def test_opcheck(self, arguments):
        leaves, edges, interval = arguments
        g = torch.randn(4, SMALL.irreps_out.dim, dtype=torch.float64, requires_grad=True)
        changes = [torch.randn_like(leaf) for leaf in leaves[:3]]
        library.opcheck(op.tabulated_product.overload, (*leaves, edges, interval, SMALL.key))
        for needs in ((True, True, True), (False, True, False), (True, False, True)):
            library.opcheck(op.tabulated_product_backward.overload, (g, *leaves, edges, interval, SMALL.key, *needs))
        fixed = [tensor.detach() for tensor in (g, *leaves)]
        for a in (changes[0], None):
            arguments = (a, *changes[1:], *fixed, edges, interval, SMALL.key)
            library.opcheck(op.tabulated_product_double_backward.overload, arguments)

    def test_compile_without_graph_breaks(self, arguments):
        leaves, edges, interval = arguments
        convolution = TabulatedConvolution(SMALL)

        def function(x, y, c, table):
            return torch.tanh(convolution(torch.sin(x), y, c, table, interval, edges)).sum()

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        values = torch.autograd.grad(compiled(*leaves), leaves)
        for value, reference in zip(values, torch.autograd.grad(function(*leaves), leaves), strict=True):
            assert torch.allclose(value, reference, rtol=1e-12, atol=1e-14)
