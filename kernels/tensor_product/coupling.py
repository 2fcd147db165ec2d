"""Real coupling coefficients of angular momenta: how components of degrees l1 and l2 make one of degree l3.

They fix what the weights of a model mean, and are therefore written down here rather than taken from a library.

Component mu = -l ... l of degree l is the real harmonic cos(mu phi) (mu >= 0) or sin(-mu phi) (mu < 0) times the
associated Legendre function of cos(theta), without the Condon-Shortley sign. The polar axis is y, and phi turns from z
to x: the components of degree 1 are (x, y, z). In terms of them, complex harmonics with the Condon-Shortley sign are

    Y_m = (-i)^l sum_mu U[m, mu] R_mu      U[m, m] = (-1)^m / sqrt 2,   U[m, -m] = i (-1)^m / sqrt 2     (m > 0)
                                           U[-m, m] = 1 / sqrt 2,       U[-m, -m] = -i / sqrt 2,     U[0, 0] = 1

and the coefficients are Clebsch-Gordan coefficients <l1 m1 l2 m2 | l3 m3> in this basis:

    C[mu1, mu2, mu3] = i^(l3 - l1 - l2) sum_m1,m2 U1[m1, mu1] U2[m2, mu2] U3*[m1 + m2, mu3] <l1 m1 l2 m2 | l3 m1 + m2>

The factor (-i)^l makes all of them real. They are those of e3nn 0.6, sqrt(2 l3 + 1) ``wigner_3j``; versions before 0.5
have the opposite sign for some (l1, l2, l3), (1, 2, 2) for example.

Sources: Racah, Phys. Rev. 62, 438 (1942), Eq. 16, with its sum made one of integers by binomial coefficients; Edmonds,
Angular Momentum in Quantum Mechanics (1957), sections 2.5 and 3.6.
"""

from fractions import Fraction
from functools import cache
from itertools import product
from math import comb, copysign, factorial, sqrt

import torch
from torch import Tensor

from ..constants import constant


@constant
def coupling(l1: int, l2: int, l3: int) -> Tensor:
    """Coupling coefficients C[m1, m2, m3], shape (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), float64.

    Each of the 2 l3 + 1 matrices has unit norm ("component" normalisation), and different ones are orthogonal.

    Raises:
        ValueError: degrees that do not couple.
    """
    tensor = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.float64)
    for place, value in nonzero(l1, l2, l3).items():
        tensor[place] = value
    return tensor


@cache
def nonzero(l1: int, l2: int, l3: int) -> dict[tuple[int, int, int], float]:
    """The coefficients that are not zero by their indices into ``coupling``, in row-major order; correct to an ulp.

    The terms of (m1, m2) and (-m1, -m2) are complex conjugates, and no others contribute to the same coefficient.

    Raises:
        ValueError: degrees that do not couple.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1} and {l2} do not couple to {l3}")
    found = {}
    for mu1, mu2 in product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        m1 = abs(mu1)
        for m2 in {mu2, -mu2}:
            m3 = m1 + m2
            square = _clebsch_gordan(l1, m1, l2, m2, l3) if abs(m3) <= l3 else 0
            for mu3 in {m3, -m3}:
                turns = (_turns(m1, mu1) + _turns(m2, mu2) - _turns(m3, mu3) + l3 - l1 - l2) % 4
                if square and turns % 2 == 0:
                    size = sqrt(abs(square) / 2 if mu1 and mu2 and mu3 else abs(square))
                    found[mu1 + l1, mu2 + l2, mu3 + l3] = copysign(size, square if turns == 0 else -square)
    return dict(sorted(found.items()))


def _turns(m: int, mu: int) -> int:
    """The power of i in U[m, mu]."""
    return (2 * m if m > 0 else 0) + (0 if mu >= 0 else 1 if m > 0 else -1)


def _clebsch_gordan(l1: int, m1: int, l2: int, m2: int, l3: int) -> Fraction:
    """The square of <l1 m1 l2 m2 | l3 m1 + m2>, with its sign."""
    m3, a, b, c = m1 + m2, l1 + l2 - l3, l1 - l2 + l3, l2 - l1 + l3
    terms = range(max(0, l1 - m1 - b, l2 + m2 - c), min(a, l1 - m1, l2 + m2) + 1)
    racah = sum((-1) ** k * comb(a, k) * comb(b, l1 - m1 - k) * comb(c, l2 + m2 - k) for k in terms)
    orders = [factorial(l + s * m) for l, m in ((l1, m1), (l2, m2), (l3, m3)) for s in (1, -1)]
    numerator = (2 * l3 + 1) * racah * abs(racah)
    for order in orders:
        numerator *= order
    return Fraction(numerator, factorial(l1 + l2 + l3 + 1) * factorial(a) * factorial(b) * factorial(c))
