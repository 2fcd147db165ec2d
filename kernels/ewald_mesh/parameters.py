"""Splitting width, cutoff, mesh and splines for a requested accuracy of the forces, at the smallest cost."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .errors import force_scale, mesh_error, mesh_terms, real_space_error
from .naive import ORDERS

# Seconds of energy and forces in float64 on one core (Zen 4, 3 GHz), measured with 110,592 atoms and meshes of 64^3 to
# 140^3 points, and pairs within 9 Å at the density of NaCl.
_PAIR = 1.2e-8  # an entry of the pair list; each pair has two
_PRODUCT_PAIR = 0.5e-9  # the same where its function is known
_ATOM, _POINT = 1.2e-8, 4.1e-9  # an atom: sorting, and p^2 rows of the stencil, spread and gathered
_FFT = 7.5e-10  # a mesh point, times log2 of their number, for both transforms
_MESH = 3e-9  # a mesh point, for what else passes over the mesh

# How much of the accuracy each sum may use up; together, the whole. The estimate of the real-space sum is for charges
# at random places; in a crystal a cutoff between two shells leaves a charged sphere, and twice the error was seen.
_REAL_SHARE, _MESH_SHARE = 0.4, 0.9


@dataclass(frozen=True)
class Parameters:
    """How to share a Coulomb sum between pairs and a mesh.

    Attributes:
        eta: splitting width, Å.
        r_cut: where the real-space sum ends, Å.
        dims: points of the mesh.
        p: order of the B-splines.
        error: estimated error of the forces, relative to ``errors.force_scale``.
        seconds: estimated time of energy and forces on one core.
        product_seconds: of another product with the same positions.
    """

    eta: float
    r_cut: float
    dims: tuple[int, int, int]
    p: int
    error: float
    seconds: float
    product_seconds: float


def choose(
    cell: Tensor,
    num_atoms: int,
    sum_q2: float,
    accuracy: float,
    r_cut: float | None = None,
    widest: float = 0.0,
    products: int = 0,
) -> Parameters:
    """The cheapest parameters whose error is below ``accuracy``.

    Args:
        cell: (3, 3) Å, rows are lattice vectors.
        num_atoms: N.
        sum_q2: sum of the squared charges, e^2. Errors and their scale are both proportional to it, so that a guess
            of it does no harm.
        accuracy: root mean square error of the forces over that between two neighbours of average charge, q^2 / d^2
            with q^2 = sum_q2 / N and d^3 = V / N.
        r_cut: where the real-space sum ends, Å (default: what is cheapest).
        widest: the largest width s of a Gaussian charge, Å: pairs must be summed until they look like points.
        products: with other charges at the same positions, expected besides energy and forces.

    Raises:
        ValueError: nothing to be chosen, or a given r_cut is too short for such wide charges.
    """
    cell = torch.as_tensor(cell).detach().double().cpu()
    volume = float(torch.linalg.det(cell).abs())
    if num_atoms < 1 or volume <= 0.0 or not 0.0 < accuracy < 1.0:
        raise ValueError(f"got {num_atoms} atoms, a volume of {volume} Å^3 and an accuracy of {accuracy}")
    sum_q2 = sum_q2 if sum_q2 > 0.0 else float(num_atoms)
    allowed = accuracy * force_scale(volume, num_atoms, sum_q2)
    target = _MESH_SHARE * allowed
    # a splitting width beyond that of the charges takes some such cutoff
    least = math.sqrt(2.0) * widest * math.sqrt(-2.0 * math.log(_REAL_SHARE * accuracy))
    candidates = [r_cut] if r_cut is not None else _cutoffs(volume, num_atoms, 1.5 * least)
    best = None
    for cutoff in candidates:
        eta = _width(cutoff, _REAL_SHARE * allowed, volume, num_atoms, sum_q2)
        if eta is None or eta < math.sqrt(2.0) * widest:
            continue
        for p in ORDERS:
            dims = _estimated(cell, eta, p, target, num_atoms, sum_q2)
            seconds = _cost(cutoff, dims, p, volume, num_atoms)
            seconds += products * _product_cost(cutoff, dims, p, volume, num_atoms)
            if best is None or seconds < best[0]:
                best = seconds, cutoff, eta, p
    if best is None:
        raise ValueError(f"a cutoff of {r_cut} Å is too short for charges of width {widest} Å at accuracy {accuracy}")
    _, cutoff, eta, p = best
    dims, error = _verified(cell, eta, p, target, num_atoms, sum_q2)
    error = math.hypot(error, real_space_error(cutoff, eta, volume, num_atoms, sum_q2))
    relative = error / force_scale(volume, num_atoms, sum_q2)
    size = cutoff, dims, p, volume, num_atoms
    return Parameters(eta, cutoff, dims, p, relative, _cost(*size), _product_cost(*size))


def _cutoffs(volume: float, num_atoms: int, least: float) -> list[float]:
    """From next neighbours to more than anyone would want, and to ``least``, in steps of four per cent."""
    nearest = 1.5 * (volume / num_atoms) ** (1.0 / 3.0)
    steps = math.ceil(math.log(max(least / nearest, 1.0)) / math.log(1.04))
    return [nearest * 1.04**k for k in range(max(60, steps + 1))]


def _width(r_cut: float, target: float, volume: float, num_atoms: int, sum_q2: float) -> float | None:
    """The splitting width at which the real-space sum has the error ``target``; None if it has less anyway."""
    decay = target / real_space_error(r_cut, math.inf, volume, num_atoms, sum_q2)
    return r_cut / math.sqrt(-2.0 * math.log(decay)) if decay < 1.0 else None


def _cost(r_cut: float, dims: tuple[int, int, int], p: int, volume: float, num_atoms: int) -> float:
    """Seconds."""
    return _entries(r_cut, volume, num_atoms) * _PAIR + num_atoms * _ATOM + _mesh_cost(dims, p, num_atoms)


def _product_cost(r_cut: float, dims: tuple[int, int, int], p: int, volume: float, num_atoms: int) -> float:
    """Seconds of a product with other charges: pair functions and the places of atoms are known."""
    return _entries(r_cut, volume, num_atoms) * _PRODUCT_PAIR + _mesh_cost(dims, p, num_atoms)


def _entries(r_cut: float, volume: float, num_atoms: int) -> float:
    return num_atoms * (num_atoms / volume) * 4.0 / 3.0 * math.pi * r_cut**3


def _mesh_cost(dims: tuple[int, int, int], p: int, num_atoms: int) -> float:
    points = math.prod(dims)
    return num_atoms * p**2 * _POINT + points * (_FFT * math.log2(points) + _MESH)


@cache
def _curve(p: int) -> tuple[list[float], list[float], list[float]]:
    """Errors of cubic meshes of spacing h at eta = 1: log h, and log Q^2 V and log S^2 of ``errors.mesh_terms``."""
    logs, pairs, own = [], [], []
    points = 10
    for k in range(12):
        h = 0.15 * 1.3**k
        a, b = mesh_terms(torch.eye(3, dtype=torch.float64) * (points * h), 1.0, (points,) * 3, p)
        logs.append(math.log(h))
        pairs.append(math.log(a * (points * h) ** 3))
        own.append(math.log(b))
    return logs, pairs, own


def _estimated(cell: Tensor, eta: float, p: int, target: float, num_atoms: int, sum_q2: float) -> tuple[int, int, int]:
    """The mesh of the largest spacing with an error below ``target``, as if its cells were cubes."""
    volume = float(torch.linalg.det(cell).abs())
    logs, pairs, own = _curve(p)

    def error(log: float) -> float:
        at = min(max(0, sum(known <= log for known in logs) - 1), len(logs) - 2)
        t = (log - logs[at]) / (logs[at + 1] - logs[at])
        a, b = (math.exp(y[at] + t * (y[at + 1] - y[at])) for y in (pairs, own))
        # lengths in units of eta: Q^2 goes as 1 / (V eta), S^2 as 1 / eta^4
        return sum_q2 * math.sqrt(a / (volume * eta * num_atoms) + b / (eta**4 * num_atoms**2))

    low, high = logs[0] - 3.0, logs[-1]
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error(middle) < target else (low, middle)
    return _dims(cell, eta * math.exp(low), p)


def _verified(cell: Tensor, eta: float, p: int, target: float, num_atoms: int, sum_q2: float):
    """The mesh and its error, refined until that is below ``target`` for the shape of the cell."""
    dims = _estimated(cell, eta, p, target, num_atoms, sum_q2)
    while (error := mesh_error(cell, eta, dims, p, num_atoms, sum_q2)) > target:
        spacings = [float(vector.norm()) / n for vector, n in zip(cell, dims, strict=True)]
        coarsest = spacings.index(max(spacings))
        dims = tuple(smooth(n + 1) if axis == coarsest else n for axis, n in enumerate(dims))
    return dims, error


def _dims(cell: Tensor, spacing: float, p: int) -> tuple[int, int, int]:
    return tuple(smooth(max(p, math.ceil(float(vector.norm()) / spacing))) for vector in cell)


def smooth(n: int) -> int:
    """The smallest product of 2, 3, 5 and 7 that is not less than n: what FFTs are fast for."""
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
