"""The pair function of the real-space sum and its derivatives, in arithmetic that every target understands.

Two Gaussian charges of squared widths a_i and a_j at distance r, less what the reciprocal sum of splitting width
eta does for them, with rho = r^2, gamma = a_i + a_j, alpha = 1 / sqrt(2 gamma) and beta = 1 / (sqrt2 eta):

    f(rho, gamma) = [erf(alpha r) - erf(beta r)] / r

A molecule has beta = 0; a point charge has a = 0. With E_x = (2 / sqrt pi) x exp(-x^2 rho),

    f_rho   = (E_alpha - E_beta - f) / 2 rho            f_gamma       = -alpha^2 E_alpha
    f_rho,rho = (beta^2 E_beta - alpha^2 E_alpha - 3 f_rho) / 2 rho
    f_rho,gamma = alpha^4 E_alpha                         f_gamma,gamma = alpha^4 E_alpha (3 - 2 alpha^2 rho)

``ops`` is what a target offers (``llvm.Operations``, ``triton_source.Operations``, or ``TorchOperations`` here); the
numbers are its lanes. What kernels sum over the pairs (i, j) of a row i is the same for all targets, too.
"""

import math

import torch
from torch import Tensor

SMALLEST_GAMMA = 1e-30  # Å^2; two point charges, without a division by zero

# (1 + 2x) exp(x^2) erfc(x) as a polynomial in (A x - B) / (x + B), 0 <= x <= 6.2 (after Shepherd & Laframboise, Math.
# Comput. 36, 249, 1981); to 4e-15 of erfc. Beyond, erfc is below 2e-18 and the polynomial stays harmless.
_A, _B = 2.2096774193548385, 3.75
_ERFC = (
    1.2833717079010691, -0.044824431714999634, -0.098899810962656, 0.11245249507684482, -0.07177479442904963,
    0.03215840602118663, -0.01040920951885883, 0.0022884943594814653, -0.0002510803609681248, -2.4974740360023436e-05,
    1.2937292022063035e-05, -7.211282546845426e-07, -4.395417093468187e-07, 6.083532822584977e-08,
    1.6040619662977848e-08, -3.097840269478651e-09, -7.080684751090336e-10, 1.353454658626765e-10,
    2.9897244669019434e-11, -4.434302259727433e-12,
)  # fmt: skip
# the same to 2e-8, for float32
_ERFC_SHORT = (
    1.28337173, -0.0448244377, -0.0989009678, 0.112452616, -0.0717654887, 0.0321577167, -0.0104355076, 0.00229011314,
    -0.000220463793, -2.66820866e-05,
)  # fmt: skip


def erfc(x, gaussian, ops):
    """erfc(x) for x >= 0, given exp(-x^2)."""
    series = _ERFC_SHORT if getattr(ops, "is_single", False) else _ERFC
    s = (x * _A - _B) / (x + _B)
    value = s * series[-1] + series[-2]
    for coefficient in series[-3::-1]:
        value = value * s + coefficient
    return value * gaussian / (x * 2.0 + 1.0)


def pair(rho, gamma, beta, ops, order: int) -> list:
    """[f], with order 1 [f, f_rho, f_gamma], with order 2 these and [f_rho,rho, f_rho,gamma, f_gamma,gamma]."""
    inverse_r = ops.rsqrt(rho)
    r = rho * inverse_r
    # alpha^2 = 1 / 2 gamma; for two point charges alpha is huge, and all stays finite
    alpha = ops.rsqrt((gamma + SMALLEST_GAMMA) * 2.0)
    alpha2, beta2 = alpha * alpha, beta * beta
    g_alpha, g_beta = ops.exp(alpha2 * rho * -1.0), ops.exp(beta2 * rho * -1.0)
    f = (erfc(beta * r, g_beta, ops) - erfc(alpha * r, g_alpha, ops)) * inverse_r
    if order == 0:
        return [f]
    scale = 2.0 / math.sqrt(math.pi)
    e_alpha, e_beta = alpha * g_alpha * scale, beta * g_beta * scale
    half_inverse = inverse_r * inverse_r * 0.5
    f_rho = (e_alpha - e_beta - f) * half_inverse
    bent = alpha2 * e_alpha
    f_gamma = bent * -1.0
    if order == 1:
        return [f, f_rho, f_gamma]
    f_rho_rho = (beta2 * e_beta - bent - f_rho * 3.0) * half_inverse
    f_rho_gamma = alpha2 * bent
    f_gamma_gamma = f_rho_gamma * (alpha2 * rho * -2.0 + 3.0)
    return [f, f_rho, f_gamma, f_rho_rho, f_rho_gamma, f_gamma_gamma]


def point_pair(rho, beta, ops) -> list:
    """[f, f_rho] of two point charges: erfc(beta r) / r."""
    inverse_r = ops.rsqrt(rho)
    gaussian = ops.exp(beta * beta * rho * -1.0)
    f = erfc(beta * (rho * inverse_r), gaussian, ops) * inverse_r
    e_beta = beta * gaussian * (2.0 / math.sqrt(math.pi))
    return [f, (e_beta + f) * (inverse_r * inverse_r * -0.5)]


def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


# What each kernel sums over the entries (i, j) of row i. An entry has the vector d from i to the image of j, its
# lattice shift n (three whole numbers), and what the two atoms bring: charges u and q, squared widths a. Every pair has
# an entry in both rows, so that u' A q = sum_i u_i sum_j f q_j, and its derivative by what belongs to atom i is the sum
# over row i of s = u_i q_j + u_j q_i times the derivative of f.


def values(entry, beta, ops) -> list:
    """f, which is not summed."""
    return pair(dot(entry.d, entry.d), entry.a_i + entry.a_j, beta, ops, 0)


def potential(entry, beta, ops) -> list:
    """[phi_i]: f q_j."""
    (f,) = pair(dot(entry.d, entry.d), entry.a_i + entry.a_j, beta, ops, 0)
    return [f * entry.q_j]


def gradient(entry, beta, ops) -> list:
    """Derivatives of u' A q: by the position of i (3), its squared width (1), and the lattice vectors (9, rows)."""
    d = entry.d
    _, f_rho, f_gamma = pair(dot(d, d), entry.a_i + entry.a_j, beta, ops, 1)
    s = entry.u_i * entry.q_j + entry.u_j * entry.q_i
    pull = [s * f_rho * component for component in d]  # half of s df/dd; the other half stands in row j
    return [*(p * -2.0 for p in pull), s * f_gamma, *(n * p for n in entry.n for p in pull)]


def pull(entry, beta, ops) -> list:
    """[phi_i] and, as ``gradient``, the derivatives of u' A q by the position of i (3) and the lattice vectors (9)."""
    return _pull(entry, *pair(dot(entry.d, entry.d), entry.a_i + entry.a_j, beta, ops, 1)[:2])


def point_pull(entry, beta, ops) -> list:
    """The same for point charges."""
    return _pull(entry, *point_pair(dot(entry.d, entry.d), beta, ops))


def _pull(entry, f, f_rho) -> list:
    s = (entry.u_i * entry.q_j + entry.u_j * entry.q_i) * f_rho
    pull = [s * component for component in entry.d]
    return [f * entry.q_j, *(p * -2.0 for p in pull), *(n * p for n in entry.n for p in pull)]


def change(entry, beta, ops) -> list:
    """Derivatives of (x', a', h') . gradient, the change of u' A q along x' (positions), a' (squared widths) and h'
    (lattice vectors): by u_i, q_i, the position of i (3), its squared width (1), and the lattice vectors (9)."""
    d = entry.d
    _, f_rho, f_gamma, f_rho_rho, f_rho_gamma, f_gamma_gamma = pair(dot(d, d), entry.a_i + entry.a_j, beta, ops, 2)
    move = [
        entry.dx_j[axis] - entry.dx_i[axis] + dot(entry.n, [entry.dh[3 * row + axis] for row in range(3)])
        for axis in range(3)
    ]
    widen = entry.da_i + entry.da_j
    along = dot(d, move) * 2.0  # the change of rho
    s = entry.u_i * entry.q_j + entry.u_j * entry.q_i
    changed = f_rho * along + f_gamma * widen
    slope = f_rho_rho * along + f_rho_gamma * widen  # the change of f_rho
    pull = [s * (f_rho * m + slope * component) for m, component in zip(move, d, strict=True)]
    return [
        changed * entry.q_j,
        changed * entry.u_j,
        *(p * -2.0 for p in pull),
        s * (f_rho_gamma * along + f_gamma_gamma * widen),
        *(n * p for n in entry.n for p in pull),
    ]


class Entry:
    """The numbers of an entry by name; vectors (d, n, dx_i, dx_j, dh) are lists."""

    def __init__(self, **numbers):
        self.__dict__.update(numbers)

    @staticmethod
    def of_row(own: dict, theirs: dict, shared: dict, n: list, charges: dict) -> "Entry":
        """From what a row's atom, the other atoms and the structure have by name (lists of columns).

        ``charges`` are the others' charges, zero in lanes beyond the end of the row.
        """
        h = shared["cell"]
        x_i, x_j = own["x"], theirs["x"]
        d = [x_j[axis] - x_i[axis] + dot(n, [h[3 * row + axis] for row in range(3)]) for axis in range(3)]
        entry = Entry(d=d, n=n)
        if "a" in own:
            entry.a_i, entry.a_j = own["a"][0], theirs["a"][0]
        for name, charge in charges.items():
            setattr(entry, f"{name}_i", own[name][0])
            setattr(entry, f"{name}_j", charge)
        if "dx" in own:
            entry.dx_i, entry.dx_j, entry.dh = own["dx"], theirs["dx"], shared["dh"]
            entry.da_i, entry.da_j = own["da"][0], theirs["da"][0]
        return entry


class TorchOperations:
    """The target that is PyTorch itself."""

    @staticmethod
    def rsqrt(x: Tensor) -> Tensor:
        return x.rsqrt()

    @staticmethod
    def exp(x: Tensor) -> Tensor:
        return torch.exp(x)
