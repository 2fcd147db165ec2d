"""The edge basis and its derivatives as straight-line arithmetic, one edge at a time.

Written once for every target: the numbers may be PyTorch tensors, lanes of a CPU's vector registers or names in a
Triton kernel, as long as they add, subtract and multiply, with each other and with Python's numbers; ``ops`` provides
what else is needed. With n = v / r, the spherical harmonics are homogeneous polynomials P_j(n) of degree l, so

    grad_v P(v / r) = (grad P(n) - l P(n) n) / r.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from ..tensor_product.coupling import nonzero

Polynomial = dict[tuple[int, int, int], float]  # exponents of x, y, z -> coefficient


class Operations(Protocol):
    """What a target must provide."""

    def constant(self, value: float) -> Any: ...

    def rsqrt(self, x) -> Any: ...

    def power(self, x, exponent: float) -> Any: ...

    def floor(self, x) -> Any: ...

    def step(self, x) -> Any:
        """1 where x < 1, else 0."""


@dataclass(frozen=True)
class Basis:
    """Cutoff radius (Å), power of the polynomial cutoff, degree of the harmonics, number of Bessel functions."""

    r_max: float
    p: float
    l_max: int
    num_bessels: int

    @property
    def num_harmonics(self) -> int:
        return (self.l_max + 1) ** 2

    @property
    def scale(self) -> float:
        return 2.0 * math.pi / self.r_max**2


@cache
def harmonics(l_max: int) -> tuple[tuple[int, Polynomial], ...]:
    """(degree, polynomial) of each real spherical harmonic, by the recursion of ``naive.spherical_harmonics``."""
    axes = [{tuple(int(a == axis) for a in range(3)): math.sqrt(3.0)} for axis in range(3)]
    shells: list[list[Polynomial]] = [[{(0, 0, 0): 1.0}], axes][: l_max + 1]
    for l in range(2, l_max + 1):
        scale = math.sqrt((2 * l + 1) / (3 * l))
        shell = [defaultdict(float) for _ in range(2 * l + 1)]
        for (a, b, m), coefficient in nonzero(1, l - 1, l).items():
            for e1, c1 in axes[a].items():
                for e2, c2 in shells[-1][b].items():
                    shell[m][tuple(s + t for s, t in zip(e1, e2, strict=True))] += coefficient * scale * c1 * c2
        shells.append([{e: c for e, c in sorted(p.items()) if abs(c) > 1e-12} for p in shell])
    return tuple((l, polynomial) for l, shell in enumerate(shells) for polynomial in shell)


def derivative(polynomial: Polynomial, axis: int) -> Polynomial:
    result = {}
    for exponents, coefficient in polynomial.items():
        if exponents[axis]:
            lowered = tuple(e - (a == axis) for a, e in enumerate(exponents))
            result[lowered] = coefficient * exponents[axis]
    return result


class Monomials:
    """Values of polynomials at one point, each monomial computed once."""

    def __init__(self, point, ops: Operations):
        self.point, self.ops = point, ops
        self.known = {}

    def monomial(self, exponents):
        if exponents not in self.known:
            axis = next(a for a in range(3) if exponents[a])
            lower = tuple(e - (a == axis) for a, e in enumerate(exponents))
            self.known[exponents] = self.point[axis] if not any(lower) else self.monomial(lower) * self.point[axis]
        return self.known[exponents]

    def __call__(self, polynomial: Polynomial):
        """The value, or None for the zero polynomial."""
        total = None
        for exponents, coefficient in polynomial.items():
            term = self.monomial(exponents) * coefficient if any(exponents) else self.ops.constant(coefficient)
            total = term if total is None else total + term
        return total


def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def add(total, term):
    """Sum in which None stands for zero."""
    return total if term is None else term if total is None else total + term


def direction(v, ops: Operations):
    """1 / r and n = v / r."""
    inverse = ops.rsqrt(dot(v, v))
    return inverse, [component * inverse for component in v]


# Taylor coefficients of sin(pi t) / t and cos(pi t) in t^2, enough for |t| <= 1/4 in double precision.
_SINE = [(-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(9)]
_COSINE = [(-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(10)]


def sincospi(x, ops: Operations):
    """sin(pi x) and cos(pi x): x less its nearest half, which is exact, two polynomials, and the quadrant.

    The library functions of GPUs would spend most of their registers on arguments that do not occur here.
    """
    half_turns = ops.floor(x * 2.0 + 0.5)
    t = x - half_turns * 0.5
    square = t * t
    sine, cosine = _horner(_SINE, square) * t, _horner(_COSINE, square)
    quadrant = half_turns - ops.floor(half_turns * 0.25) * 4.0
    even = ops.step(quadrant - ops.floor(quadrant * 0.5) * 2.0)
    odd = 1.0 - even
    sine_sign = ops.step(quadrant * 0.5) * 2.0 - 1.0
    centred = quadrant - 1.5
    cosine_sign = 1.0 - ops.step(centred * centred) * 2.0
    return (sine * even + cosine * odd) * sine_sign, (cosine * even + sine * odd) * cosine_sign


def _horner(coefficients: list[float], x):
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


def radial(r_inverse, v, roots, basis: Basis, ops: Operations, orders: int) -> list[list]:
    """Radial functions R_m and their first ``orders`` derivatives by r: a list for each m."""
    x = dot(v, v) * r_inverse * (1.0 / basis.r_max)
    x_inverse = r_inverse * basis.r_max
    p, inside = basis.p, ops.step(x)
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    top = ops.power(x, p - 2)
    # u = 1 - x^p (a - b x + c x^2) and its derivatives by x, times the scale and zero from x = 1 on
    envelope = [
        (top * x * x * (x * (b - x * c) - a) + 1.0) * inside * basis.scale,
        top * x * (x * ((p + 1) * b - x * ((p + 2) * c)) - p * a) * inside * basis.scale,
        top * (x * ((p + 1) * p * b - x * ((p + 2) * (p + 1) * c)) - p * (p - 1) * a) * inside * basis.scale,
    ]
    result = []
    for root in roots:
        sine, cosine = sincospi(root * x, ops)
        values = [sine * (1.0 / math.pi) * x_inverse]  # b = sin(n pi x) / (pi x)
        if orders > 0:
            values.append((root * cosine - values[0]) * x_inverse)
        if orders > 1:
            values.append((root * root * sine * -math.pi - values[1] * 2.0) * x_inverse)
        products = [values[0] * envelope[0]]
        if orders > 0:
            products.append((values[1] * envelope[0] + values[0] * envelope[1]) * (1.0 / basis.r_max))
        if orders > 1:
            second = values[2] * envelope[0] + values[1] * envelope[1] * 2.0 + values[0] * envelope[2]
            products.append(second * (1.0 / basis.r_max**2))
        result.append(products)
    return result


def forward(v, roots, basis: Basis, ops: Operations):
    """Harmonics and radial functions of an edge vector (three numbers)."""
    r_inverse, n = direction(v, ops)
    at = Monomials(n, ops)
    angular = [at(polynomial) for _, polynomial in harmonics(basis.l_max)]
    return angular, [values[0] for values in radial(r_inverse, v, roots, basis, ops, 0)]


def backward(v, roots, g_angular, g_radial, basis: Basis, ops: Operations):
    """Gradient by v of phi = sum g_angular Y + sum g_radial R."""
    r_inverse, n = direction(v, ops)
    at = Monomials(n, ops)
    gradient, along = [None] * 3, None
    for g, (l, polynomial) in zip(g_angular, harmonics(basis.l_max), strict=True):
        if l == 0:
            continue
        along = add(along, g * at(polynomial) * float(l))
        for axis in range(3):
            slope = at(derivative(polynomial, axis))
            gradient[axis] = add(gradient[axis], None if slope is None else g * slope)
    slope = None
    for g, values in zip(g_radial, radial(r_inverse, v, roots, basis, ops, 1), strict=True):
        slope = add(slope, g * values[1])
    slope = ops.constant(0.0) if slope is None else slope
    if along is None:
        return [slope * component for component in n]
    slope = slope - along * r_inverse
    return [g * r_inverse + slope * component for g, component in zip(gradient, n, strict=True)]


def double_backward(v, roots, g_angular, g_radial, h, basis: Basis, ops: Operations):
    """Gradients of h . grad phi by g_angular, g_radial and v."""
    r_inverse, n = direction(v, ops)
    at = Monomials(n, ops)
    h_along = dot(h, n)
    across = [a - h_along * b for a, b in zip(h, n, strict=True)]
    d_angular, bend, slope_sum, value_sum = [], [None] * 3, None, None
    gradient = [None] * 3  # sum g grad P
    for g, (l, polynomial) in zip(g_angular, harmonics(basis.l_max), strict=True):
        if l == 0:
            d_angular.append(ops.constant(0.0))
            continue
        slopes = [at(derivative(polynomial, axis)) for axis in range(3)]
        change = None  # grad P . across
        for axis in range(3):
            change = add(change, None if slopes[axis] is None else slopes[axis] * across[axis])
        d_angular.append(change * r_inverse)
        value_sum = add(value_sum, g * at(polynomial) * float(l))
        slope_sum = add(slope_sum, g * change * float(l))
        for axis in range(3):
            gradient[axis] = add(gradient[axis], None if slopes[axis] is None else g * slopes[axis])
            for other in range(3):
                curvature = at(derivative(derivative(polynomial, axis), other))
                bend[axis] = add(bend[axis], None if curvature is None else g * curvature * across[other])
    d_radial, first, second = [], None, None
    for g, values in zip(g_radial, radial(r_inverse, v, roots, basis, ops, 2), strict=True):
        d_radial.append(h_along * values[1])
        first, second = add(first, g * values[1]), add(second, g * values[2])
    if first is None:
        first = second = ops.constant(0.0)
    # the radial part: f'' (n . h) n + f' h_across / r
    d_v = [second * h_along * n[a] + first * r_inverse * across[a] for a in range(3)]
    if value_sum is not None:
        # the angular part: G = sum g (grad P - l P n); (D G [h_across] - (n . h) G) / r^2
        square = r_inverse * r_inverse
        for a in range(3):
            turned = gradient[a] - value_sum * n[a]
            change = add(bend[a], (slope_sum * n[a] + value_sum * across[a]) * -1.0)
            d_v[a] = d_v[a] + (change - h_along * turned) * square
    return d_angular, d_radial, d_v
