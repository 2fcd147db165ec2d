"""The generated edge-basis kernels against the specification: values and derivatives to third order."""

import pytest
import torch
from fastlr.kernels.edge_basis import op
from fastlr.kernels.edge_basis.naive import edge_basis as naive
from fastlr.kernels.edge_basis.op import edge_basis
from torch import library

R_MAX = 4.0
ROOTS = torch.arange(1, 9, dtype=torch.float64)


def place(device: str) -> str:
    return "cpu" if device == "interpreter" else device


def random_vectors(number: int) -> torch.Tensor:
    """Lengths from a tenth of the cutoff to a little beyond."""
    directions = torch.nn.functional.normalize(torch.randn(number, 3, dtype=torch.float64), dim=1)
    return directions * R_MAX * (0.1 + torch.rand(number, 1, dtype=torch.float64))


def derivatives(function, vectors, probes) -> list[torch.Tensor]:
    """Y and R, the gradient of a probe of them, the gradients of a probe of that, and so once more."""
    v, g_angular, g_radial = (tensor.clone().requires_grad_(True) for tensor in (vectors, *probes[:2]))
    values = list(function(v))
    phi = (values[0] * g_angular).sum() + (values[1] * g_radial).sum()
    (first,) = torch.autograd.grad(phi, v, create_graph=True)
    leaves, options = (v, g_angular, g_radial), {"allow_unused": True, "materialize_grads": True}
    second = torch.autograd.grad(first, leaves, probes[2], create_graph=True, **options)
    scalar = sum((value * probe).sum() for value, probe in zip(second, probes[3:], strict=True))
    return [*values, first, *second, *torch.autograd.grad(scalar, leaves, **options)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("l_max", "p"), [(0, 6.0), (1, 2.0), (2, 6.0), (2, 7.5), (3, 6.0), (4, 5.0)])
@pytest.mark.parametrize("number", [1, 19])
def test_all_derivatives(number, l_max, p, dtype, device):
    vectors = random_vectors(number)
    probes = [torch.randn(number, (l_max + 1) ** 2), torch.randn(number, 8)]
    probes = [probe.to(dtype) for probe in probes]
    probes += [torch.randn(number, 3, dtype=torch.float64), torch.randn(number, 3, dtype=torch.float64)]
    probes += [torch.randn_like(probe) for probe in probes[:2]]
    there, roots = [probe.to(place(device)) for probe in probes], ROOTS.to(place(device))
    values = derivatives(lambda v: edge_basis(v, R_MAX, roots, p, l_max, dtype), vectors.to(place(device)), there)
    exact = [probe.double() for probe in probes]
    references = derivatives(lambda v: naive(v, R_MAX, ROOTS, p, l_max), vectors, exact)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for number, (value, reference) in enumerate(zip(values, references, strict=True)):
        error = torch.linalg.vector_norm(value.cpu().double() - reference)
        assert error <= tolerance * torch.linalg.vector_norm(reference), number
    assert values[0].dtype == values[1].dtype == dtype
    assert values[2].dtype == torch.float64


def test_finite_differences():
    vectors = random_vectors(5).requires_grad_(True)

    def function(v):
        return edge_basis(v, R_MAX, ROOTS, 6.0, 3, torch.float64)

    assert torch.autograd.gradcheck(function, vectors)
    assert torch.autograd.gradgradcheck(function, vectors)


def test_nothing_beyond_the_cutoff(device):
    vectors = torch.tensor([[R_MAX, 0.0, 0.0], [0.0, 1.3 * R_MAX, 0.0]], dtype=torch.float64, device=place(device))
    vectors.requires_grad_(True)
    _, radial = edge_basis(vectors, R_MAX, ROOTS.to(place(device)), 6.0, 1, torch.float64)
    assert not radial.any()
    assert not torch.autograd.grad(radial.sum(), vectors)[0].any()


def test_no_edges(device):
    vectors = torch.zeros(0, 3, dtype=torch.float64, device=place(device), requires_grad=True)
    angular, radial = edge_basis(vectors, R_MAX, ROOTS.to(place(device)), 6.0, 2, torch.float32)
    assert angular.shape == (0, 9)
    assert radial.shape == (0, 8)
    assert torch.autograd.grad(angular.sum() + radial.sum(), vectors)[0].shape == (0, 3)


def test_same_bits_on_any_number_of_threads():
    vectors = random_vectors(3000)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(edge_basis(vectors, R_MAX, ROOTS, 6.0, 2, torch.float64))
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("vectors", "roots", "message"),
    [
        (torch.ones(3, 2, dtype=torch.float64), ROOTS, r"vectors: expected \(E, 3\)"),
        (torch.ones(3, 3), ROOTS, "of float64, got"),
        (torch.ones(3, 3, dtype=torch.float64), ROOTS.float(), "roots: expected"),
        (torch.ones(3, 3, dtype=torch.float64), ROOTS.clone().requires_grad_(True), "trained Bessel roots need"),
    ],
)
def test_wrong_inputs(vectors, roots, message):
    with pytest.raises(ValueError, match=message):
        edge_basis(vectors, R_MAX, roots, 6.0, 1, torch.float64)


def test_opcheck():
    vectors = random_vectors(5).requires_grad_(True)
    g_angular, g_radial = torch.randn(5, 9, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    h = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    numbers = (R_MAX, 6.0, 2)
    library.opcheck(op.edge_basis_op.overload, (vectors, ROOTS, *numbers, torch.float32))
    library.opcheck(op.edge_basis_backward.overload, (g_angular, g_radial, vectors, ROOTS, *numbers))
    library.opcheck(op.edge_basis_double_backward.overload, (h, g_angular, g_radial, vectors, ROOTS, *numbers))
