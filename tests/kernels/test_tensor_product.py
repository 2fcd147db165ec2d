"""The convolution against e3nn's TensorProduct, an implementation with another layout and code generator."""

from importlib.util import find_spec

import pytest
import torch
from e3nn import o3
from e3nn.o3 import Irreps
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.tensor_product.naive import NaiveConvolution
from fastlr.kernels.tensor_product.program import Program
from reference.differences import relative_error
from reference.e3nn_signs import sign
from reference.rotations import random_rotation, representation

# node features, spherical harmonics, wanted output
SIGNATURES = {
    "scalars": ("3x0e", "0e", "0e"),
    "first layer": ("5x0e", "0e+1o+2e", "0e+1o+2e"),
    "natural parity": ("4x0e+4x1o+4x2e", "0e+1o+2e", "0e+1o+2e"),
    "both parities": ("3x0e+3x0o+2x1o+5x1e+1x2e", "0e+1o", "0e+0o+1o+1e+2e+2o"),
    "uneven": ("5x0e+3x1o+2x2e", "0e+1o+2e", "0e+1o+1e+2e"),
    "to scalars": ("7x0e+1x1o+3x2e", "0e+1o+2e", "0e"),
    "degree three": ("2x0e+1x1o+3x2e+1x3o", "0e+1o+2e+3o", "0e+1o+2e+3o+3e"),
    "one edge degree": ("2x1o+3x1e", "2e", "1o+1e+3o"),
}
signatures = pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES.keys())


def random_inputs(program: Program, num_nodes: int = 5, num_edges: int = 13, requires_grad: bool = False):
    tensors = [
        torch.randn(rows, columns, dtype=torch.float64, requires_grad=requires_grad)
        for rows, columns in (
            (num_nodes, program.irreps_in.dim),
            (num_edges, program.irreps_edge.dim),
            (num_edges, program.weight_numel),
        )
    ]
    # node 1 receives no edge
    destination = torch.randint(max(num_nodes, 1), (num_edges,)).sort().values
    destination[destination == 1] = 2
    edge_index = torch.stack([destination, torch.randint(max(num_nodes, 1), (num_edges,))])
    return *tensors, Adjacency.from_edges(edge_index, num_nodes)


def to_channels_first(x: torch.Tensor, irreps: Irreps) -> torch.Tensor:
    """(2l+1, mul) blocks to e3nn's (mul, 2l+1)."""
    blocks = [
        x[:, block].reshape(-1, ir.dim, mul).transpose(1, 2).reshape(-1, ir.dim * mul)
        for block, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    ]
    return torch.cat(blocks, dim=1)


def e3nn_convolution(irreps_in, irreps_edge, filter_out):
    """The "uvu" product as NequIP sets it up, and its irreps out."""
    irreps_in, irreps_edge, filter_out = Irreps(irreps_in), Irreps(irreps_edge), Irreps(filter_out)
    paths, instructions = [], []
    for i, (mul, ir1) in enumerate(irreps_in):
        for j, (_, ir2) in enumerate(irreps_edge):
            for ir3 in ir1 * ir2:
                if ir3 in filter_out:
                    instructions.append((i, j, len(paths)))
                    paths.append((mul, ir3))
    irreps_out, place, _ = Irreps(paths).sort()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn rounds its coefficients to the default type
    try:
        product = o3.TensorProduct(
            irreps_in,
            irreps_edge,
            irreps_out,
            [(i, j, place[k], "uvu", True) for i, j, k in instructions],
            irrep_normalization="component",
            path_normalization="none",
            shared_weights=False,
            internal_weights=False,
        )
    finally:
        torch.set_default_dtype(default)
    return product, irreps_out.simplify()


@signatures
def test_agrees_with_e3nn(signature):
    program = Program(*signature)
    product, irreps_out = e3nn_convolution(*signature)
    assert program.irreps_out == irreps_out
    assert program.weight_numel == product.weight_numel
    x, y, weights, edges = random_inputs(program)
    z = NaiveConvolution(program)(x, y, weights, edges)
    signs = torch.cat([torch.full((path.mul,), sign(path.l1, path.l2, path.l3)) for path in program.paths])
    messages = product(to_channels_first(x, program.irreps_in)[edges.source], y, weights * signs)
    expected = torch.zeros(len(x), irreps_out.dim, dtype=torch.float64).index_add(0, edges.destination, messages)
    got = to_channels_first(z, irreps_out)
    for block in irreps_out.slices():  # block by block: a small one must not hide behind a large one
        assert relative_error(got[:, block], expected[:, block]) < 1e-12
    assert not z[1].any()


@pytest.mark.parametrize("name", ["uneven", "both parities"])
def test_is_equivariant(name):
    program = Program(*SIGNATURES[name])
    convolution = NaiveConvolution(program)
    x, y, weights, edges = random_inputs(program)
    rotation = random_rotation(improper=True)  # parities matter

    def transform(values, irreps):
        """The representation acts on the component axis of each block."""
        blocks = [
            torch.einsum("ij,nju->niu", representation(ir, rotation), values[:, block].reshape(-1, ir.dim, mul))
            for block, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
        ]
        return torch.cat([block.flatten(1) for block in blocks], dim=1)

    z = convolution(x, y, weights, edges)
    rotated = convolution(transform(x, program.irreps_in), transform(y, program.irreps_edge), weights, edges)
    assert relative_error(rotated, transform(z, program.irreps_out)) < 1e-12


def test_derivatives():
    program = Program("2x0e+1x1o", "0e+1o", "0e+1o")
    *inputs, edges = random_inputs(program, 3, 3, requires_grad=True)
    convolution = NaiveConvolution(program)
    assert torch.autograd.gradcheck(lambda *leaves: convolution(*leaves, edges), inputs)
    assert torch.autograd.gradgradcheck(lambda *leaves: convolution(*leaves, edges), inputs)


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(0, 0), (1, 0), (3, 0)])
def test_without_edges(num_nodes, num_edges):
    program = Program(*SIGNATURES["uneven"])
    x, y, weights, edges = random_inputs(program, num_nodes, num_edges)
    z = NaiveConvolution(program)(x, y, weights, edges)
    assert z.shape == (num_nodes, program.irreps_out.dim)
    assert not z.any()


def test_float32():
    program = Program(*SIGNATURES["uneven"])
    x, y, weights, edges = random_inputs(program)
    convolution = NaiveConvolution(program)
    z = convolution(x.float(), y.float(), weights.float(), edges)
    assert z.dtype == torch.float32
    assert 0.0 < relative_error(z, convolution(x, y, weights, edges)) < 1e-6


def test_program_without_paths():
    program = Program("2x0e", "0e", "1o")
    assert program.weight_numel == 0
    x, y, weights, edges = random_inputs(program)
    assert NaiveConvolution(program)(x, y, weights, edges).shape == (5, 0)


@pytest.mark.parametrize(
    ("irreps_in", "irreps_edge"), [("1x0e+2x0e", "0e"), ("1x0e", "0e+0e"), ("1x0e", "2x0e")], ids=lambda x: x
)
def test_program_refuses_ambiguous_irreps(irreps_in, irreps_edge):
    with pytest.raises(ValueError, match=r"twice|multiplicity"):
        Program(irreps_in, irreps_edge, "0e")


@pytest.mark.skipif(find_spec("cuequivariance_torch") is None, reason="cuequivariance-torch is not installed")
class TestCuEquivariance:
    @staticmethod
    def values_and_derivatives(convolution, inputs, probes, edges):
        """z, its three gradients, and the gradients of a probe of these gradients."""
        leaves = [x.clone().requires_grad_(True) for x in inputs]
        z = convolution(*leaves, edges)
        first = torch.autograd.grad(z, leaves, probes[0], create_graph=True)
        second = torch.autograd.grad(sum((g * p).sum() for g, p in zip(first, probes[1:], strict=True)), leaves)
        return [z, *first, *second]

    @signatures
    def test_agrees_with_naive(self, signature):
        from fastlr.kernels.tensor_product.cuequivariance import CuEquivarianceConvolution

        program = Program(*signature)
        *inputs, edges = random_inputs(program)
        probes = [torch.randn(5, program.irreps_out.dim, dtype=torch.float64)]
        probes += [torch.randn_like(x) for x in inputs]
        results = [
            self.values_and_derivatives(convolution, inputs, probes, edges)
            for convolution in (CuEquivarianceConvolution(program, "naive", torch.float64), NaiveConvolution(program))
        ]
        for value, reference in zip(*results, strict=True):
            assert relative_error(value.detach(), reference.detach()) < 1e-12

    def test_without_edges(self):
        from fastlr.kernels.tensor_product.cuequivariance import CuEquivarianceConvolution

        program = Program(*SIGNATURES["uneven"])
        x, y, weights, edges = random_inputs(program, 3, 0)
        convolution = CuEquivarianceConvolution(program, "naive", torch.float64)
        z = convolution(x, y, weights, edges)
        assert z.shape == (3, program.irreps_out.dim)
        assert not z.any()
