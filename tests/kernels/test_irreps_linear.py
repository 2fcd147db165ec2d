"""The linear map of irreps: against the specification, to second order."""

import pytest
import torch
from e3nn.o3 import Irreps
from fastlr.kernels.irreps_linear import naive, op
from fastlr.kernels.irreps_linear.layout import Layout
from torch import library

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
MAPS = {
    "scalars": ("3x0e", "5x0e"),
    "one channel": ("1x0e+1x2o", "1x0e+1x2o"),
    "unequal": ("7x0e+33x1o+4x2e", "40x0e+17x1o+3x2e"),
    "missing on either side": ("5x0e+2x1o+3x1e", "4x0e+20x0o+2x1o+6x2e"),
    "wide": ("97x0e+33x1o+16x3o", "32x0e+100x1o+16x3o"),
    "nothing in common": ("5x1o", "3x0e"),
}


def derivatives(function, tensors, probes) -> list[torch.Tensor]:
    """z, its gradients, and the gradients of probes of these."""
    x, weights, g = (tensor.clone().requires_grad_(True) for tensor in tensors)
    z = function(x, weights)
    first = torch.autograd.grad(z, (x, weights), g, create_graph=True)
    scalar = sum((value * probe).sum() for value, probe in zip(first, probes, strict=True))
    return [z, *first, *torch.autograd.grad(scalar, (x, weights, g))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("num_atoms", [1, 13, 70])
@pytest.mark.parametrize("irreps", [m for m in MAPS.values() if m != MAPS["nothing in common"]], ids=list(MAPS)[:-1])
def test_all_derivatives(irreps, num_atoms, dtype, device):
    layout, on = Layout.of(*map(Irreps, irreps)), torch.device("cuda" if device == "cuda" else "cpu")
    shapes = ((num_atoms, layout.dim_in), (layout.num_weights,), (num_atoms, layout.dim_out))
    tensors = [torch.randn(shape, dtype=dtype, device=on) for shape in shapes]
    probes = [torch.randn_like(tensor) for tensor in tensors[:2]]
    found = derivatives(lambda x, w: op.irreps_linear(x, w, layout.key, False), tensors, probes)
    exact = [[tensor.double() for tensor in group] for group in (tensors, probes)]
    expected = derivatives(lambda x, w: naive.apply(x, w, layout), *exact)
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert value.dtype == dtype
        error = torch.linalg.vector_norm(value.double() - reference)
        assert error <= TOLERANCE[dtype] * torch.linalg.vector_norm(reference), number


def test_many_atoms(device, monkeypatch):
    """Of which GPUs leave the map to PyTorch."""
    if device != "cpu":
        monkeypatch.setattr("fastlr.kernels.irreps_linear.triton.MANY", 0)
    layout, on = Layout.of(*map(Irreps, MAPS["unequal"])), torch.device("cuda" if device == "cuda" else "cpu")
    x, weights = torch.randn(70, layout.dim_in, device=on), torch.randn(layout.num_weights, device=on)
    for transposed, given in ((False, x), (True, torch.randn(70, layout.dim_out, device=on))):
        found = op.irreps_linear(given, weights, layout.key, transposed)
        expected = naive.apply(given.double(), weights.double(), layout, transposed)
        error = torch.linalg.vector_norm(found.double() - expected)
        assert error <= TOLERANCE[torch.float32] * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("irreps", MAPS.values(), ids=MAPS.keys())
def test_transposed_is_the_adjoint(irreps, device):
    layout, on = Layout.of(*map(Irreps, irreps)), torch.device("cuda" if device == "cuda" else "cpu")
    shapes = (9, layout.dim_in), (9, layout.dim_out), (layout.num_weights,)
    x, g, weights = (torch.randn(shape, dtype=torch.float64, device=on) for shape in shapes)
    forward, backward = (op.irreps_linear(t, weights, layout.key, back) for t, back in ((x, False), (g, True)))
    assert float((forward * g).sum()) == pytest.approx(float((x * backward).sum()), rel=1e-12, abs=1e-12)
    assert torch.allclose(backward, naive.apply(g, weights, layout, transposed=True), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_maps_side_by_side(copies, dtype, device):
    """Add up; derivatives to second order, and with atoms and channels that fill no vector."""
    one = Layout.of(*map(Irreps, MAPS["unequal"]))
    layout = one.side_by_side(copies)
    assert Layout.from_key(layout.key) == layout
    shapes = ((11, layout.dim_in), (layout.num_weights,), (11, layout.dim_out))
    on = torch.device("cuda" if device == "cuda" else "cpu")
    tensors = [torch.randn(shape, dtype=dtype, device=on) for shape in shapes]
    probes = [torch.randn_like(tensor) for tensor in tensors[:2]]

    def apart(x, weights):
        parts = zip(x.chunk(copies, dim=1), weights.chunk(copies), strict=True)
        return sum(naive.apply(part, own, one) for part, own in parts)

    found = derivatives(lambda x, w: op.irreps_linear(x, w, layout.key, False), tensors, probes)
    exact = [[tensor.double() for tensor in group] for group in (tensors, probes)]
    expected = derivatives(apart, *exact)
    for value, reference in zip(derivatives(lambda x, w: naive.apply(x, w, layout), *exact), expected, strict=True):
        assert torch.allclose(value, reference, rtol=1e-12, atol=1e-12)
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        error = torch.linalg.vector_norm(value.double() - reference)
        assert error <= TOLERANCE[dtype] * torch.linalg.vector_norm(reference), number


def test_no_atoms():
    layout = Layout.of(Irreps("3x0e+2x1o"), Irreps("4x0e+5x1o"))
    x = torch.zeros(0, layout.dim_in, requires_grad=True)
    weights = torch.randn(layout.num_weights, requires_grad=True)
    z = op.irreps_linear(x, weights, layout.key, False)
    assert z.shape == (0, layout.dim_out)
    dx, dw = torch.autograd.grad(z.sum(), (x, weights))
    assert dx.shape == x.shape
    assert not dw.any()


def test_same_bits_on_any_number_of_threads():
    layout = Layout.of(Irreps("33x0e+32x1o"), Irreps("64x0e+20x1o"))
    x, g = torch.randn(500, layout.dim_in), torch.randn(500, layout.dim_out)
    weights, results = torch.randn(layout.num_weights), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([op.irreps_linear(x, weights, layout.key, False), op.irreps_linear_weights(x, g, layout.key)])
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_finite_differences_and_opcheck():
    layout = Layout.of(Irreps("3x0e+2x1o"), Irreps("2x0e+1x0o+2x1o"))
    x, weights = torch.randn(2, layout.dim_in).double(), torch.randn(layout.num_weights).double()
    leaves = [t.requires_grad_(True) for t in (x, weights)]
    for transposed in (False, True):
        args = leaves if not transposed else [torch.randn(2, layout.dim_out).double().requires_grad_(True), weights]
        assert torch.autograd.gradcheck(lambda *t, back=transposed: op.irreps_linear(*t, layout.key, back), args)
        assert torch.autograd.gradgradcheck(lambda *t, back=transposed: op.irreps_linear(*t, layout.key, back), args)
        library.opcheck(op.irreps_linear.overload, (*args, layout.key, transposed))
    g = torch.randn(2, layout.dim_out).double().requires_grad_(True)
    library.opcheck(op.irreps_linear_weights.overload, (x, g, layout.key))


def test_wrong_inputs():
    layout = Layout.of(Irreps("3x0e+2x1o"), Irreps("2x0e+2x1o"))
    weights = torch.randn(layout.num_weights)
    with pytest.raises(ValueError, match=r"features: expected \(N, 9\)"):
        op.irreps_linear(torch.randn(4, 8), weights, layout.key, False)
    with pytest.raises(ValueError, match=r"weights: expected \(10,\)"):
        op.irreps_linear(torch.randn(4, 9), weights[1:], layout.key, False)
    with pytest.raises(ValueError, match="rows, but"):
        op.irreps_linear_weights(torch.randn(4, 9), torch.randn(3, 8), layout.key)
