"""Coupling coefficients: those of e3nn, and by what defines them."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3
from fastlr.kernels.edge_basis.naive import spherical_harmonics
from fastlr.kernels.irreps import Irrep
from fastlr.kernels.tensor_product.coupling import coupling, nonzero
from reference.differences import relative_error
from reference.e3nn_signs import sign
from reference.rotations import random_rotation
from scipy.special import sph_harm_y
from sympy.physics.wigner import clebsch_gordan
from torch.nn.functional import normalize

L_MAX = 4
TRIPLES = [(l1, l2, l3) for l1 in range(5) for l2 in range(5) for l3 in range(abs(l1 - l2), min(l1 + l2, L_MAX) + 1)]


def points(number: int) -> torch.Tensor:
    return normalize(torch.randn(number, 3, dtype=torch.float64), dim=1)


def of_degree(l: int, directions: torch.Tensor) -> torch.Tensor:
    return spherical_harmonics(directions, l)[:, l * l :]


def test_agrees_with_e3nn():
    assert len(TRIPLES) == 65
    for triple in TRIPLES:
        expected = o3.wigner_3j(*triple, dtype=torch.float64) * math.sqrt(2 * triple[2] + 1) * sign(*triple)
        assert (coupling(*triple) - expected).abs().max() < 4e-15, triple


def test_high_degrees_agree_with_e3nn():
    """Up to a sign, for versions before 0.5 have another one for some of them."""
    for triple in ((5, 3, 4), (6, 6, 6), (3, 4, 6), (5, 5, 1), (2, 6, 7)):
        expected = o3.wigner_3j(*triple, dtype=torch.float64) * math.sqrt(2 * triple[2] + 1)
        got = coupling(*triple)
        got = got if sign(1, 2, 2) == 1.0 else got * torch.sign((got * expected).sum())
        assert (got - expected).abs().max() < 4e-15, triple


@pytest.mark.parametrize(("l1", "l2"), [(0, 0), (1, 1), (3, 2), (2, 4), (5, 4), (7, 7)])
def test_is_a_change_of_basis(l1, l2):
    """Orthogonal from pairs of components to all components of all degrees."""
    matrices = [coupling(l1, l2, l3).flatten(0, 1) for l3 in range(abs(l1 - l2), l1 + l2 + 1)]
    square = torch.cat(matrices, dim=1)
    unit = torch.eye((2 * l1 + 1) * (2 * l2 + 1), dtype=torch.float64)
    assert (square @ square.T - unit).abs().max() < 4e-15
    assert (square.T @ square - unit).abs().max() < 4e-15


def test_is_equivariant():
    """D3 C = C (D1 x D2), where the D are how spherical harmonics transform."""
    rotation, grid = random_rotation(), points(60)
    turned = grid @ rotation.T
    d = [torch.linalg.lstsq(of_degree(l, grid), of_degree(l, turned)).solution.T for l in range(L_MAX + 1)]
    for l1, l2, l3 in TRIPLES:
        c = coupling(l1, l2, l3)
        expected = torch.einsum("abk,ck->abc", c, d[l3])
        assert relative_error(torch.einsum("ijc,ia,jb->abc", c, d[l1], d[l2]), expected) < 1e-12, (l1, l2, l3)


def test_components_are_real_harmonics():
    """Order, signs, axes and normalisation, by scipy's complex harmonics: polar axis y, azimuth from z to x."""
    grid = points(9)
    x, y, z = grid.numpy().T
    for l in range(6):
        of_order = [sph_harm_y(l, abs(m), np.arccos(y), np.arctan2(x, z)) for m in range(-l, l + 1)]
        of_order = [(-1) ** m * (c.real if m >= 0 else c.imag) for m, c in zip(range(-l, l + 1), of_order, strict=True)]
        scale = [math.sqrt(4.0 * math.pi * (2.0 if m else 1.0)) for m in range(-l, l + 1)]
        assert relative_error(of_degree(l, grid), np.stack(of_order, axis=1) * scale) < 1e-12


def complex_basis(l: int) -> np.ndarray:
    """Complex harmonics of orders -l ... l in terms of the components."""
    u = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    u[l, l] = 1.0
    for m in range(1, l + 1):
        u[l + m, [l + m, l - m]] = (-1) ** m / math.sqrt(2.0), (-1) ** m * 1j / math.sqrt(2.0)
        u[l - m, [l + m, l - m]] = 1.0 / math.sqrt(2.0), -1j / math.sqrt(2.0)
    return (-1j) ** l * u


@pytest.mark.parametrize("triple", [(0, 2, 2), (1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 2, 2), (3, 2, 2), (3, 3, 1)])
def test_definition(triple):
    """Clebsch-Gordan coefficients, here by sympy, in the basis of the components."""
    complex_ones = np.zeros([2 * l + 1 for l in triple])
    for place in np.ndindex(complex_ones.shape):
        complex_ones[place] = clebsch_gordan(*triple, *(k - l for k, l in zip(place, triple, strict=True)))
    u1, u2, u3 = map(complex_basis, triple)
    expected = np.einsum("ia,jb,kc,ijk->abc", u1, u2, u3.conj(), complex_ones)
    assert np.abs(coupling(*triple).numpy() - expected).max() < 1e-14


def test_what_does_not_couple_is_refused():
    for triple in ((1, 1, 3), (0, 2, 1), (3, 1, 1)):
        with pytest.raises(ValueError, match=f"degrees {triple[0]} and {triple[1]} do not couple to {triple[2]}"):
            coupling(*triple)
        assert Irrep(triple[2], 1) not in list(Irrep(triple[0], 1) * Irrep(triple[1], 1))


def test_what_is_listed_is_the_tensor():
    for triple in TRIPLES:
        tensor = coupling(*triple)
        assert list(map(list, nonzero(*triple))) == tensor.nonzero().tolist()  # row-major, none of them zero
        assert all(tensor[place] == value for place, value in nonzero(*triple).items())
