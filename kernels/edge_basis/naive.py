"""The specification of the edge basis in plain PyTorch.

Sources: NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022) and DimeNet (Gasteiger et al., ICLR 2020, Eq. 7-8).
"""

import math

import torch
from fastlr.kernels.tensor_product.coupling import coupling
from torch import Tensor


def polynomial_cutoff(x: Tensor, p: float) -> Tensor:
    """DimeNet envelope u(x) of the reduced distance x = r / r_max, zero (with two derivatives) from x = 1 on.

    u = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)
    """
    inside = 1.0 - x**p * ((p + 1.0) * (p + 2.0) / 2.0 - x * (p * (p + 2.0) - x * (p * (p + 1.0) / 2.0)))
    return inside * (x < 1.0)


def bessel_basis(x: Tensor, roots: Tensor) -> Tensor:
    """b_n = sin(n pi x) / (pi x) for the reduced distance x; shape (E, len(roots)).

    ``roots`` holds n = 1, 2, ...; they may be trained, and x = 0 gives the limit n.
    """
    return torch.sinc(x[:, None] * roots) * roots


def radial_basis(x: Tensor, r_max: float, roots: Tensor, p: float) -> Tensor:
    """Bessel functions of the reduced distance x (E,) times the cutoff and 2 pi / r_max^2; shape (E, len(roots))."""
    return bessel_basis(x, roots) * polynomial_cutoff(x, p)[:, None] * (2.0 * math.pi / r_max**2)


def spherical_harmonics(directions: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics Y_0 ... Y_l_max of unit vectors, |Y_l|^2 = 2l + 1; shape (E, (l_max + 1)^2).

    Y_l couples Y_1 with Y_(l-1): Y_l = sqrt((2l+1) / 3l) C(1, l-1, l) Y_1 Y_(l-1), with C from ``coupling``. Order
    and signs are those of its components.
    """
    harmonics = [torch.ones_like(directions[:, :1]), math.sqrt(3.0) * directions][: l_max + 1]
    for l in range(2, l_max + 1):
        coefficients = coupling(1, l - 1, l).to(directions).flatten(0, 1) * math.sqrt((2 * l + 1) / (3 * l))
        products = harmonics[1][:, :, None] * harmonics[-1][:, None, :]
        harmonics.append(products.flatten(1) @ coefficients)
    return torch.cat(harmonics, dim=1)


def edge_basis(
    vectors: Tensor, r_max: float, roots: Tensor, p: float, l_max: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Angular and radial basis of edge vectors.

    Args:
        vectors: (E, 3), Å, destination to source; no vector may be zero.
        r_max: cutoff radius, Å.
        roots: (num_bessels,) roots of the Bessel basis.
        p: power of the polynomial cutoff.
        l_max: highest degree of the spherical harmonics.
        dtype: float type of the results; default: that of ``vectors``.

    Returns:
        (E, (l_max + 1)^2) spherical harmonics, "component" normalisation, degree after degree, and
        (E, num_bessels) Bessel functions times the cutoff and 2 pi / r_max^2.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    angular = spherical_harmonics(vectors / lengths[:, None], l_max)
    radial = radial_basis(lengths / r_max, r_max, roots, p)
    dtype = dtype or vectors.dtype
    return angular.to(dtype), radial.to(dtype)
