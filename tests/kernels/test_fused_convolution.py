"""The generated kernels against the specification: values, and gradients of first and second order, path by path."""

import os
import subprocess
import sys

import pytest
import torch
from fastlr.bench.problems import PROBLEMS, inputs
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.tensor_product import op
from fastlr.kernels.tensor_product.coupling import coupling
from fastlr.kernels.tensor_product.naive import NaiveConvolution
from fastlr.kernels.tensor_product.op import FusedConvolution
from fastlr.kernels.tensor_product.program import Program
from torch import library

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# Beyond the named problems: few and many channels, tails of vectors, degree four, one path, no path.
ODD = {
    "one channel": ("1x0e+1x1o", "0e+1o", "0e+1o+1e"),
    "tails": ("5x0e+37x1o+8x2e+17x1e", "0e+1o+2e", "0e+1o+1e+2e"),
    "degree four": ("2x0e+1x1o+3x2e+1x3o+2x4e", "0e+1o+2e+3o+4e", "0e+1o+2e+3o+4e"),
    "one path": ("7x1o", "1o", "1e"),
    "unused edge degree": ("3x0e", "0e+1o+2e", "0e"),
}
PROGRAMS = {name: problem.reduced() for name, problem in PROBLEMS.items()} | {
    name: Program(*signature) for name, signature in ODD.items()
}


def tensors_on(device: str, tensors):
    return [tensor.to("cpu" if device == "interpreter" else device) for tensor in tensors]


def random_graph(num_nodes: int, num_edges: int) -> Adjacency:
    """Unsorted edges; node 1 neither receives nor sends any, some pairs are joined twice."""
    edge_index = torch.randint(max(num_nodes, 1), (2, num_edges))
    edge_index[edge_index == 1] = 0
    return Adjacency.from_edges(edge_index, num_nodes)


def derivatives(convolution, leaves, edges, probes) -> dict[str, torch.Tensor]:
    """z, its gradients by x, Y and w, and the gradients of a probe of those by x, Y, w and the gradient of z."""
    x, y, w = (leaf.clone().requires_grad_(True) for leaf in leaves)
    g = probes[0].clone().requires_grad_(True)
    z = convolution(x, y, w, edges)
    first = torch.autograd.grad(z, (x, y, w), g, create_graph=True)
    second = torch.autograd.grad(first, (x, y, w, g), probes[1:])
    names = ("z", "dx", "dy", "dw", "ddx", "ddy", "ddw", "dg")
    return {name: value.detach() for name, value in zip(names, (z, *first, *second), strict=True)}


def blocks(program: Program) -> dict[str, list[list[int]]]:
    """The columns of each kind of tensor that belong to each path, or to each edge degree."""
    x_columns, z_columns = [], []
    for path in program.contractions():
        for columns, block in ((x_columns, path.source), (z_columns, path.target)):
            columns.append([place + u for place in block.places for u in range(path.mul)])
    w_columns = [list(range(path.weight, path.weight + path.mul)) for path in program.contractions()]
    used = {path.block2 for path in program.paths}
    y_columns = [list(range(part.start, part.stop)) for j, part in enumerate(program.irreps_edge.slices()) if j in used]
    return {"x": x_columns, "z": z_columns, "y": y_columns, "w": w_columns}


def assert_same(values, references, program: Program, dtype) -> None:
    """Relative root-mean-square error of each block of columns of each tensor."""
    columns = blocks(program)
    for name, value in values.items():
        reference = references[name]
        assert value.shape == reference.shape
        assert value.dtype == dtype
        kind = {"z": "z", "dg": "z"}.get(name, name[-1])
        for block in columns[kind]:
            error = torch.linalg.vector_norm(value[:, block].double() - reference[:, block])
            scale = torch.linalg.vector_norm(reference[:, block])
            assert error <= TOLERANCE[dtype] * scale, (name, block[0], float(error / scale))


def check(program: Program, edges: Adjacency, dtype, device: str = "cpu") -> None:
    num_nodes, num_edges = edges.row_ptr.shape[0] - 1, edges.source.shape[0]
    leaves = inputs(program, num_nodes, num_edges, torch.float64)
    probes = [torch.randn(num_nodes, program.irreps_out.dim, dtype=torch.float64)]
    probes += [torch.randn_like(leaf) for leaf in leaves]
    rounded = [[tensor.to(dtype) for tensor in tensors] for tensors in (leaves, probes)]
    exact = [[tensor.double() for tensor in tensors] for tensors in rounded]
    there = [tensors_on(device, tensors) for tensors in (*rounded, edges)]
    values = derivatives(FusedConvolution(program), there[0], Adjacency(*there[2]), there[1])
    values = {name: value.cpu() for name, value in values.items()}
    assert_same(values, derivatives(NaiveConvolution(program), exact[0], edges, exact[1]), program, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_all_derivatives(program, dtype, device):
    check(program, random_graph(3, 4) if device == "interpreter" else random_graph(5, 11), dtype, device)


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(0, 0), (1, 0), (3, 0), (1, 1), (1, 2000), (2, 40)])
def test_sizes(num_nodes, num_edges, device):
    """No nodes, no edges, one node that is its own neighbour, degree 2,000."""
    if device == "interpreter" and num_edges > 40:
        pytest.skip("the interpreter takes two minutes; smaller cases are tested in it")
    edges = Adjacency.from_edges(torch.randint(max(num_nodes, 1), (2, num_edges)), num_nodes)
    check(Program("3x0e+2x1o", "0e+1o", "0e+1o+1e"), edges, torch.float64, device)


def test_third_derivative():
    """A probe of all second derivatives, differentiated by everything; the arguments share tensors."""
    program, edges = PROGRAMS["nequip-S"], random_graph(4, 9)
    leaves = inputs(program, 4, 9, torch.float64)

    def third(convolution):
        x, y, w = (leaf.clone().requires_grad_(True) for leaf in leaves)
        g = torch.ones(4, program.irreps_out.dim, dtype=torch.float64, requires_grad=True)
        first = torch.autograd.grad(convolution(x, y, w, edges), (x, y, w), g, create_graph=True)
        # the cotangents are the very tensors that the convolution took
        second = torch.autograd.grad(first, (x, y, w, g), (x, y, w), create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in second), (x, y, w, g))

    for value, reference in zip(third(FusedConvolution(program)), third(NaiveConvolution(program)), strict=True):
        assert torch.linalg.vector_norm(value - reference) < 1e-12 * torch.linalg.vector_norm(reference)


def test_gradients_against_finite_differences():
    program, edges = PROGRAMS["nequip-S"], random_graph(4, 7)
    leaves = [leaf.requires_grad_(True) for leaf in inputs(program, 4, 7, torch.float64)]
    convolution = FusedConvolution(program)
    assert torch.autograd.gradcheck(lambda *xyw: convolution(*xyw, edges), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *xyw: convolution(*xyw, edges), leaves, fast_mode=True)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (1, 2)])
def test_gradients_of_some_inputs(needed, device):
    program = PROGRAMS["nequip-S"]
    edges = Adjacency(*tensors_on(device, random_graph(4, 6)))
    leaves = tensors_on(device, inputs(program, 4, 6, torch.float64))

    def gradients(convolution):
        arguments = [leaf.clone().requires_grad_(k in needed) for k, leaf in enumerate(leaves)]
        wanted = [arguments[k] for k in needed]
        return torch.autograd.grad((convolution(*arguments, edges) ** 2).sum(), wanted)

    for value, reference in zip(
        gradients(FusedConvolution(program)), gradients(NaiveConvolution(program)), strict=True
    ):
        assert torch.linalg.vector_norm(value - reference) < 1e-12 * torch.linalg.vector_norm(reference)


def test_every_output_is_written(device, monkeypatch):
    """Memory handed to the kernels is full of NaN; isolated nodes and unused edge degrees must come out zero."""
    for name in ("new_empty", "empty_like"):
        original = getattr(torch.Tensor, name, None) or getattr(torch, name)

        def poisoned(*args, original=original, **kwargs):
            tensor = original(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch.Tensor if name == "new_empty" else torch, name, poisoned)
    program = PROGRAMS["unused edge degree"]
    edges = Adjacency(*tensors_on(device, random_graph(4, 5)))
    leaves = [leaf.requires_grad_(True) for leaf in tensors_on(device, inputs(program, 4, 5, torch.float64))]
    z = FusedConvolution(program)(*leaves, edges)
    assert not z[1].any()
    gradients = torch.autograd.grad(z.sum(), leaves)
    assert torch.isfinite(z).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[1][:, 1:].any()


@pytest.mark.usefixtures("many_cores")
def test_same_bits_every_time():
    program, edges = PROBLEMS["nequip-l2-32"].program, random_graph(40, 700)
    leaves = inputs(program, 40, 700)
    probes = [torch.randn(40, program.irreps_out.dim), *(torch.randn_like(leaf) for leaf in leaves)]
    results = []
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        results.append(derivatives(FusedConvolution(program), leaves, edges, probes))
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(value, results[0][name]) for name, value in result.items())


def test_several_threads_agree_with_naive():
    program, edges = PROGRAMS["nequip-M"], random_graph(60, 900)
    torch.set_num_threads(3)
    try:
        check(program, edges, torch.float64)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y, w: (x[:, 1:], y, w), "x: expected"),
        (lambda x, y, w: (x, y[1:], w), "edge attributes: expected"),
        (lambda x, y, w: (x, y, w[:, :-1]), "weights: expected"),
        (lambda x, y, w: (x.double(), y, w), "x: expected"),
        (lambda x, y, w: (x.half(), y.half(), w.half()), "for float32 and float64"),
    ],
)
def test_wrong_inputs(spoil, message):
    program, edges = PROGRAMS["nequip-S"], random_graph(4, 6)
    with pytest.raises(ValueError, match=message):
        FusedConvolution(program)(*spoil(*inputs(program, 4, 6)), edges)


@pytest.mark.parametrize("name", Adjacency._fields)
def test_lists_that_do_not_fit(name):
    """Kernels would read beyond the end of them."""
    program, edges = PROGRAMS["nequip-S"], random_graph(4, 6)
    edges = edges._replace(**{name: getattr(edges, name)[:-1]})
    with pytest.raises(ValueError, match="adjacency: "):
        FusedConvolution(program)(*inputs(program, 4, 6), edges)


def test_inputs_need_not_be_contiguous():
    program, edges = PROGRAMS["nequip-S"], random_graph(4, 6)
    leaves = inputs(program, 4, 6, torch.float64)
    strided = [leaf.T.contiguous().T for leaf in leaves]
    assert torch.equal(FusedConvolution(program)(*strided, edges), FusedConvolution(program)(*leaves, edges))


def test_offsets_beyond_31_bits():
    """A row of weights beyond 2^31 floats, in a file with holes: nothing of it but the last page exists."""
    program = PROBLEMS["nequip-S"].program
    num_edges = 2**31 // program.weight_numel + 3
    script = f"""
import torch, tempfile
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.tensor_product import cpu
from fastlr.kernels.tensor_product.program import Program
program, E = Program({str(program.irreps_in)!r}, {str(program.irreps_edge)!r}, {str(program.filter_out)!r}), {num_edges}
with tempfile.NamedTemporaryFile() as file:
    w = torch.from_file(file.name, shared=True, size=E * program.weight_numel).view(E, -1)
    w[-1] = torch.randn(program.weight_numel)
    x, y = torch.randn(1, program.irreps_in.dim), torch.randn(1, program.irreps_edge.dim)
    zero = torch.zeros(1, dtype=torch.int64)
    ptr = torch.tensor([0, 1])
    one = Adjacency(zero, zero, ptr, zero, ptr, zero)
    expected = cpu.gather(program, one, [(w[-1:].clone(), y, x)])
    last = torch.tensor([E - 1])
    node, attributes = torch.zeros(1, dtype=torch.int64).expand(E), y.expand(E, -1)
    class Far:
        def __init__(self, tensor, row): self.tensor, self.row = tensor, row
        def data_ptr(self):
            return self.tensor.data_ptr() - self.row * self.tensor.stride(0) * self.tensor.element_size()
        dtype, shape = torch.float32, y.shape
    out = torch.empty(1, program.irreps_out.dim)
    kernel = cpu._compiled(cpu.Gather, program, ((0, 0, 0),), torch.float32, False)
    cpu.launch(kernel, [out, ptr, last, Far(zero, E - 1), w, Far(y, E - 1), x], ptr)
    assert torch.equal(out, expected), (out - expected).abs().max()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_text_of_a_program():
    program = Program("2x0e+1x1o", "0e+1o", "0e+1o")
    text = str(program)
    assert text.splitlines()[0] == "2x0e+1x1o x 1x0e+1x1o -> 3x0e+3x1o"
    assert "an edge: 6 weights; " in text
    assert "    z0 += w x1 (+0.577350 Y2)" in text
    assert Program.from_key(program.key) == program


def test_cost_counts_the_terms():
    """By hand for 1x1o x 1o -> 1e: six entries of one term, three outputs."""
    assert torch.count_nonzero(coupling(1, 1, 1)) == 6
    cost = Program("1x1o", "1o", "1e").cost
    assert cost.forward == 2 * (6 + 3)
    assert cost.streamed == 1 + 3
    assert cost.gathered == 3


class TestPyTorch:
    """What PyTorch asks of an operator."""

    @pytest.fixture
    def arguments(self):
        program, edges = PROGRAMS["nequip-S"], random_graph(4, 6)
        leaves = [leaf.requires_grad_(True) for leaf in inputs(program, 4, 6, torch.float64)]
        return program, edges, leaves

    def test_opcheck(self, arguments):
        program, edges, leaves = arguments
        key, g = program.key, torch.randn(4, program.irreps_out.dim, dtype=torch.float64, requires_grad=True)
        cotangents = [torch.randn_like(leaf).requires_grad_(True) for leaf in leaves]
        library.opcheck(op.tensor_product.overload, (*leaves, list(edges), key))
        for need in (True, False):
            library.opcheck(op.tensor_product_backward.overload, (g, *leaves, list(edges), key, need, not need))
        for a in (cotangents[0], None):
            needed = (a, *cotangents[1:], g, *leaves, list(edges), key, a is None)
            library.opcheck(op.tensor_product_double_backward.overload, needed)

    def test_what_nobody_asks_for_changes_nothing(self, arguments):
        """Second and third derivatives by some inputs alone, as a training step takes them."""
        program, edges, leaves = arguments
        z = op.tensor_product(*leaves, list(edges), program.key)
        probes = [torch.randn_like(leaf) for leaf in leaves]
        first = torch.autograd.grad(z, leaves, torch.randn_like(z), create_graph=True)
        scalar = sum((value * probe).sum() for value, probe in zip(first, probes, strict=True))
        everything = torch.autograd.grad(scalar, leaves, create_graph=True)
        for kept in ([0], [1], [2], [0, 2], [1, 2]):
            some = torch.autograd.grad(scalar, [leaves[k] for k in kept], create_graph=True)
            for value, k in zip(some, kept, strict=True):
                assert torch.allclose(value, everything[k], rtol=1e-12, atol=1e-12)
            third = torch.autograd.grad((some[-1] ** 2).sum(), leaves, retain_graph=True)
            expected = torch.autograd.grad((everything[kept[-1]] ** 2).sum(), leaves, retain_graph=True)
            for value, reference in zip(third, expected, strict=True):
                assert torch.allclose(value, reference, rtol=1e-11, atol=1e-11)

    def test_compile_without_graph_breaks(self, arguments):
        program, edges, leaves = arguments
        convolution = FusedConvolution(program)

        def function(x, y, w):
            return torch.tanh(convolution(torch.sin(x), y, w, edges)).sum()

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        values = torch.autograd.grad(compiled(*leaves), leaves)
        for value, reference in zip(values, torch.autograd.grad(function(*leaves), leaves), strict=True):
            assert torch.allclose(value, reference, rtol=1e-12, atol=0)

    def test_export(self, arguments):
        program, edges, leaves = arguments
        nodes, num_edges = torch.export.Dim("nodes"), torch.export.Dim("edges")

        class Wrapped(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.convolution = FusedConvolution(program)

            def forward(self, x, y, w, edges):
                return self.convolution(x, y, w, Adjacency(*edges))

        lengths = num_edges, num_edges, nodes + 1, num_edges, nodes + 1, num_edges
        shapes = {"x": {0: nodes}, "y": {0: num_edges}, "w": {0: num_edges}, "edges": [{0: n} for n in lengths]}
        leaves = [leaf.detach() for leaf in leaves]
        exported = torch.export.export(Wrapped(), (*leaves, list(edges)), dynamic_shapes=shapes)
        other, other_leaves = random_graph(7, 19), inputs(program, 7, 19, torch.float64)
        value = exported.module()(*other_leaves, list(other))
        assert torch.equal(value, FusedConvolution(program)(*other_leaves, other))


def test_in_a_forked_process():
    """A data loader's worker must not wait for its parent's threads."""
    script = """
import os, sys, torch
from fastlr.bench.problems import PROBLEMS, adjacency, inputs
from fastlr.kernels.tensor_product.op import FusedConvolution
torch.set_num_threads(2)
problem = PROBLEMS["nequip-S"]
edges = adjacency(problem, 11000)
leaves = inputs(problem.program, 64, 10112)
expected = FusedConvolution(problem.program)(*leaves, edges)
child = os.fork()
if child == 0:
    # compared by NumPy: PyTorch's own threads do not survive a fork
    same = (FusedConvolution(problem.program)(*leaves, edges).numpy() == expected.numpy()).all()
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_compiled_code_is_kept(tmp_path):
    """The second process finds the machine code of the first, and a spoilt file is not trusted."""
    script = """
import sys, torch
from fastlr.kernels import jit
compiled = []
compile_ = jit.object_code
jit.object_code = lambda assembly: compiled.append(assembly) or compile_(assembly)
from fastlr.bench.problems import inputs
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.tensor_product.op import FusedConvolution
from fastlr.kernels.tensor_product.program import Program
program = Program("3x0e", "0e", "0e")
edges = Adjacency.from_edges(torch.tensor([[0, 1], [1, 0]]), 2)
x, y, w = inputs(program, 2, 2, torch.float64)
z = FusedConvolution(program)(x, y, w, edges)
assert torch.allclose(z, (w * y * x[[1, 0]]), rtol=1e-14), z
print(len(compiled))
"""

    def compilations():
        environment = os.environ | {"FASTLR_CACHE": str(tmp_path)}
        return int(
            subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True).stdout
        )

    assert compilations() == 2  # and the start of threads
    assert compilations() == 0
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert compilations() == 2
    assert compilations() == 0
