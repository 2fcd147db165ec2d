"""Madelung constants of eight crystals: the Ewald sum and the particle mesh against a direct sum over point charges."""

import functools
import math

import numpy as np
import pytest
import torch
from fastlr.kernels.ewald.coulomb import coulomb_energy
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from scipy.interpolate import BSpline

CUBE = np.eye(3)
FCC = 0.5 * (1.0 - CUBE)
HEXAGONAL = np.array([[1.0, 0.0, 0.0], [-0.5, math.sqrt(0.75), 0.0], [0.0, 0.0, math.sqrt(8.0 / 3.0)]])


def rhombohedral(degrees: float) -> np.ndarray:
    """Three unit vectors with the same angle between any two."""
    cosine = math.cos(math.radians(degrees))
    return np.linalg.cholesky(np.full((3, 3), cosine) + (1.0 - cosine) * CUBE)


def corundum(w: float, u: float) -> list:
    """Al on the threefold axis at w, O on the twofold axes at u + 1/4."""
    first, second = 0.25 + u, 0.25 - u
    oxygen = [(first, second, 0.25), (second, 0.25, first), (0.25, first, second)]
    return [[z] * 3 for z in (w, 0.5 - w, 1.0 - w, 0.5 + w)] + oxygen + [[-f for f in row] for row in oxygen]


# lattice (of any unit of length), fractional coordinates, charges, formula units; and the constant M of the energy
# -M q^2 / d of a formula unit, d the shortest distance of unlike ions, to the digits published: Sakamoto (J. Chem.
# Phys. 28, 164, 1958), Zucker (J. Phys. A 8, 1734, 1975), Johnson & Templeton (J. Chem. Phys. 34, 2004, 1961)
CRYSTALS = {
    "rock salt": (FCC, [[0.0] * 3, [0.5] * 3], [1, -1], 1, "1.7475645946"),
    "caesium chloride": (CUBE, [[0.0] * 3, [0.5] * 3], [1, -1], 1, "1.7626747731"),
    "zincblende": (FCC, [[0.0] * 3, [0.25] * 3], [1, -1], 1, "1.6380550534"),
    "wurtzite": (
        HEXAGONAL, [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 1 / 2], [1 / 3, 2 / 3, 3 / 8], [2 / 3, 1 / 3, 7 / 8]],
        [1, 1, -1, -1], 2, "1.64132162737",
    ),
    "fluorite": (FCC, [[0.0] * 3, [0.25] * 3, [0.75] * 3], [2, -1, -1], 1, "5.03878487985"),
    "cuprite": (
        CUBE, [[0.25] * 3, [0.75, 0.75, 0.25], [0.75, 0.25, 0.75], [0.25, 0.75, 0.75], [0.0] * 3, [0.5] * 3],
        [1, 1, 1, 1, -2, -2], 2, "4.44247",
    ),
    "perovskite": (CUBE, [[0.5] * 3, [0.0] * 3, *(0.5 * CUBE)], [2, 4, -2, -2, -2], 1, "24.7549"),
    "corundum": (rhombohedral(55 + 16 / 60), corundum(0.355, 0.303), [3] * 4 + [-2] * 6, 2, "24.242"),
}  # fmt: skip
EDGE = 4.3  # Å
BOX = np.array([[1, 0, 0], [2, 1, 0], [-1, -2, 1]])  # of determinant 1: other vectors of the same lattice


def crystal(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and cell in Å, and charges, of the primitive cell."""
    lattice, fractional, charges, _, _ = CRYSTALS[name]
    cell = EDGE * lattice
    return np.array(fractional, float) @ cell, cell, np.array(charges, float)


def repeated(x, cell, q, multiples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shifts = np.stack(np.meshgrid(*(np.arange(m) for m in multiples), indexing="ij"), -1).reshape(-1, 3) @ cell
    return (shifts[:, None] + x).reshape(-1, 3), np.array(multiples)[:, None] * cell, np.tile(q, len(shifts))


def smooth_window(f: np.ndarray, degree: int, n: int) -> np.ndarray:
    """1 around zero, and how a B-spline of that degree falls to 0 about n + 1/2."""
    spline = BSpline.basis_element(np.arange(degree + 2) - 0.5 * (degree + 1), extrapolate=False)
    return sum(np.nan_to_num(spline(f + m)) for m in range(-n, n + 1))


def direct_energy(x, cell, q, degree: int = 9, n: int = 12) -> float:
    """q q' / r of a crystal over all lattice vectors near enough, nothing split, e^2/Å a cell.

    The charge of each ion is shared out over its images, by the product of three B-splines of its fractional
    coordinates. This leaves the crystal as it is, and all multipoles of a neutral cell up to the splines' degree are
    zero, since sum_k (f + k)^t B(f + k) does not depend on f (Strang & Fix). Thus the sum over cells converges fast, to
    the potential of mean zero in a crystal without a surface (after Gellé & Lepetit, J. Chem. Phys. 128, 244716, 2008).
    """
    fractional = x @ np.linalg.inv(cell)
    reach = n + degree // 2 + 3
    images = np.arange(-reach, reach + 1)[:, None]
    energy = 0.0
    for i in range(len(q)):
        for j in range(len(q)):
            f = fractional[j] + images
            w = smooth_window(f - 0.5, degree, n)
            along = [(f[:, [axis]] - fractional[i, axis]) * cell[axis] for axis in range(3)]
            r = np.linalg.norm(along[0][:, None, None] + along[1][:, None] + along[2], axis=-1)
            if i == j:
                r[reach, reach, reach] = np.inf
            # numpy adds pairwise, which the cancellation of the charges needs
            energy += 0.5 * q[i] * q[j] * (w[:, None, None, 0] * w[:, None, 1] * w[:, 2] / r).sum()
    return energy


@functools.cache
def exact_energy(name: str) -> float:
    """e^2/Å, of the primitive cell."""
    return direct_energy(*crystal(name))


def ewald_energy(x, cell, q, accuracy: float, mesh: bool = False, eta: float | None = None) -> float:
    n = len(x)
    tables = coulomb_tables(x, cell, np.ones(3, bool), np.zeros(n), accuracy, eta, mesh)
    batch, ptr = torch.zeros(n, dtype=torch.int64), torch.tensor([0, n])
    tensors = torch.from_numpy(x), torch.zeros(n, dtype=torch.float64), torch.from_numpy(cell)[None]
    return float(coulomb_energy(torch.from_numpy(q), System.of(*tensors, batch, ptr, tables)))


def nearest(x, cell, q) -> float:
    """The shortest distance of unlike ions."""
    images, _, _ = repeated(x, cell, q, (3, 3, 3))
    r = np.linalg.norm(images - cell.sum(axis=0) - x[:, None], axis=-1)
    return float(r[q[:, None] * np.tile(q, 27) < 0.0].min())


# --- the direct sum itself ---


def test_direct_sum_of_rock_salt():
    """12 pi sum of sech^2(pi / 2 sqrt(m^2 + n^2)) over odd m and n (Benson 1956)."""
    odd = np.arange(1, 40, 2)
    benson = 12.0 * math.pi * (np.cosh(0.5 * math.pi * np.hypot(odd, odd[:, None])) ** -2.0).sum()
    assert -exact_energy("rock salt") * 0.5 * EDGE == pytest.approx(benson, rel=1e-13)


@pytest.mark.parametrize("name", CRYSTALS)
def test_direct_sum_has_converged(name):
    assert direct_energy(*crystal(name), degree=8, n=10) == pytest.approx(exact_energy(name), rel=1e-11)


@pytest.mark.parametrize("name", CRYSTALS)
def test_published_constants(name):
    *_, units, published = CRYSTALS[name]
    x, cell, q = crystal(name)
    constant = -exact_energy(name) * nearest(x, cell, q) / units
    digits = len(published.split(".")[1])
    assert abs(constant - float(published)) < 10.0**-digits  # some are cut off, others rounded


# --- the Ewald sum ---


@pytest.mark.parametrize("name", CRYSTALS)
def test_primitive_cell(name):
    x, cell, q = crystal(name)
    for eta in (None, 0.6, 1.3):
        assert ewald_energy(x, cell, q, 1e-12, eta=eta) == pytest.approx(exact_energy(name), rel=1e-10)


@pytest.mark.parametrize("multiples", [(2, 2, 2), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("name", CRYSTALS)
def test_supercell(name, multiples):
    found = ewald_energy(*repeated(*crystal(name), multiples), 1e-12)
    assert found == pytest.approx(math.prod(multiples) * exact_energy(name), rel=1e-10)


@pytest.mark.parametrize("box", [BOX, BOX[[1, 0, 2]], BOX[::-1]], ids=["skewed", "left-handed", "other order"])
@pytest.mark.parametrize("name", CRYSTALS)
def test_other_vectors_of_the_same_lattice(name, box, rng):
    """With ions several cells away from each other, too."""
    x, cell, q = crystal(name)
    x = x + rng.integers(-2, 3, x.shape) @ cell
    assert ewald_energy(x, box @ cell, q, 1e-12) == pytest.approx(exact_energy(name), rel=1e-10)


# --- the particle mesh ---


@pytest.mark.parametrize("accuracy", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])
@pytest.mark.parametrize("name", CRYSTALS)
def test_mesh(name, accuracy):
    """At some place between its points, for a crystal whose ions all lie on them has other errors."""
    x, cell, q = crystal(name)
    multiples = (3, 3, 3) if len(q) > 3 else (4, 4, 4)
    x, cell, q = repeated(x, cell, q, multiples)
    found = ewald_energy(x + np.array([0.37, 0.21, 0.55]), cell, q, accuracy, mesh=True)
    assert found == pytest.approx(math.prod(multiples) * exact_energy(name), rel=accuracy)


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("name", CRYSTALS)
def test_mesh_in_a_skewed_cell(name, accuracy):
    x, cell, q = crystal(name)
    multiples = (3, 3, 3) if len(q) > 3 else (4, 4, 4)
    x, cell, q = repeated(x, BOX @ cell, q, multiples)
    found = ewald_energy(x, cell, q, accuracy, mesh=True)
    assert found == pytest.approx(math.prod(multiples) * exact_energy(name), rel=accuracy)
