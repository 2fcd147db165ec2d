"""The edge basis against formulas written out directly."""

import math

import numpy as np
import pytest
import torch
from fastlr.kernels.edge_basis.naive import bessel_basis, edge_basis, polynomial_cutoff
from reference.differences import relative_error
from scipy.special import sph_harm_y

R_MAX = 4.3
ROOTS = torch.arange(1, 6, dtype=torch.float64)


def random_vectors(number: int = 11, longest: float = R_MAX) -> torch.Tensor:
    directions = torch.nn.functional.normalize(torch.randn(number, 3, dtype=torch.float64), dim=1)
    return directions * (0.5 + (longest - 0.5) * torch.rand(number, 1, dtype=torch.float64))


@pytest.mark.parametrize("p", [2.0, 6.0, 7.5])
def test_radial_part(p):
    vectors = random_vectors()
    _, radial = edge_basis(vectors, R_MAX, ROOTS, p, 1)
    expected = []
    for vector in vectors.numpy():
        r = math.sqrt(sum(vector**2))
        x = r / R_MAX
        # DimeNet Eq. 8
        envelope = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        # 2 pi / r_max^2 * sin(n pi x) / (pi x) = 2 / r_max * sin(n pi r / r_max) / r
        expected.append([envelope * 2 / R_MAX * math.sin(n * math.pi * r / R_MAX) / r for n in range(1, 6)])
    # relative to the whole: near the cutoff the envelope is a small difference of large terms
    assert relative_error(radial, expected) < 1e-13


def test_spherical_harmonics():
    """Degrees in order, "component" norm |Y_l|^2 = 2 l + 1, the addition theorem, and Y_1 = sqrt3 (x, y, z)."""
    vectors = random_vectors()
    angular, _ = edge_basis(vectors, R_MAX, ROOTS, 6.0, 3)
    units = torch.nn.functional.normalize(vectors, dim=1)
    assert relative_error(angular[:, 1:4], math.sqrt(3.0) * units) < 1e-14
    for degree in range(4):
        block = angular[:, degree**2 : (degree + 1) ** 2]
        legendre = np.polynomial.Legendre.basis(degree)((units @ units.T).numpy())
        assert relative_error(block @ block.T, (2 * degree + 1) * legendre) < 1e-12
    # the m = 0 member about e3nn's polar axis y, by scipy
    x, y, z = units.numpy().T
    expected = sph_harm_y(2, 0, np.arccos(y), np.arctan2(x, z)).real * math.sqrt(4 * math.pi)
    assert relative_error(angular[:, 6], expected) < 1e-12


def test_cutoff_is_smooth():
    """u, u' and u'' vanish at the cutoff, and u and its derivatives are zero beyond."""
    x = torch.tensor([1.0 - 1e-9, 1.0, 1.0 + 1e-9, 1.7], dtype=torch.float64, requires_grad=True)
    value = polynomial_cutoff(x, 6.0)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(curvature.sum(), x)
    # u ~ c (1 - x)^3 with c = p (p + 1)(p + 2) / 6 = 56: u'' = 6 c (1 - x)
    value, slope, curvature = (values.detach() for values in (value, slope, curvature))
    assert abs(float(value[0])) < 1e-13
    assert abs(float(slope[0])) < 1e-12
    assert abs(float(curvature[0])) == pytest.approx(336e-9, rel=1e-3)
    assert float(third[0]) == pytest.approx(-336.0, rel=1e-6)
    for values in (value, slope, curvature):
        assert not values[1:].any()


def test_value_at_origin():
    x = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(bessel_basis(x, ROOTS)[0], ROOTS)
    assert polynomial_cutoff(x, 6.0) == 1.0


def test_beyond_the_cutoff_nothing():
    _, radial = edge_basis(random_vectors() * 10.0 + R_MAX, R_MAX, ROOTS, 6.0, 1)
    assert not radial.any()


def test_derivatives():
    vectors = random_vectors(3, 3.5).requires_grad_(True)
    roots = (ROOTS[:3] + 0.1).requires_grad_(True)

    def function(vectors, roots):
        return edge_basis(vectors, R_MAX, roots, 6.0, 2)

    assert torch.autograd.gradcheck(function, (vectors, roots))
    assert torch.autograd.gradgradcheck(function, (vectors, roots))


def test_no_edges():
    angular, radial = edge_basis(torch.zeros(0, 3, dtype=torch.float64), R_MAX, ROOTS, 6.0, 2)
    assert angular.shape == (0, 9)
    assert radial.shape == (0, 5)
