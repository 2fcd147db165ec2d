"""The EEQ charge model of DFT-D4, written from its published equations in atomic units.

Caldeweyher et al., J. Chem. Phys. 150, 154122 (2019): with charges of radius a_i,

    E = sum_i (chi_i - kappa_i sqrt(CN_i)) q_i + (gamma_i + sqrt(2 / pi) / a_i) q_i^2 / 2
        + sum_(i < j) q_i q_j erf(r / sqrt(a_i^2 + a_j^2)) / r

    CN_i = sum_j (1 + erf(-7.5 (r / R_ij - 1))) / 2,   R_ij = sum of D3 radii: 4/3 of Pyykkö's covalent
    radii, those of metals reduced by a tenth.

In our terms the Gaussian width is s_i = a_i / sqrt2, for then sqrt(2 / pi) / a_i = 1 / (s_i sqrt(pi)); the hardness is
J_i = gamma_i and the electronegativity chi_i - kappa_i sqrt(CN_i). The parameters are those of the supplement.
"""

import itertools

import numpy as np
from scipy.special import erf

ANGSTROM = 1.0 / 0.52917726  # bohr, as the xtb program had it; its tests need this value

# chi, gamma, kappa, a, covalent radius in Å
PARAMETERS = {
    "H": (1.23695041, -0.35015861, 0.04916110, 0.55159092, 0.32),
    "C": (1.40028282, 0.19408787, 0.06005196, 1.88862966, 0.75),
    "O": (1.56866440, 0.03151644, 0.11689703, 1.23166285, 0.63),
    "Na": (0.55936220, 0.24206510, -0.10002962, 1.28263182, 1.40),
    "Si": (1.12306840, 0.13155266, -0.04964052, 1.54075036, 1.04),
    "Cl": (1.48154584, 0.17523529, 0.13682750, 1.36779065, 0.99),
}


def parameters(symbols):
    """(chi, gamma, kappa, a, radius) arrays in atomic units."""
    chi, gamma, kappa, a, radius = np.array([PARAMETERS[symbol] for symbol in symbols]).T
    return chi, gamma, kappa, a, radius * 4.0 / 3.0 * ANGSTROM


def coordination_numbers(symbols, positions, cell=None, cutoff: float = 20.0):
    """CN of each atom; positions, cell and cutoff in bohr."""
    radius = parameters(symbols)[4]
    shifts = np.zeros((1, 3))
    if cell is not None:
        reach = int(cutoff / np.min(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0))) + 2
        shifts = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3))) @ cell
    numbers = np.zeros(len(positions))
    for i, j in itertools.product(range(len(positions)), repeat=2):
        r = np.linalg.norm(positions[j] - positions[i] + shifts, axis=1)
        r = r[(r > 1e-6) & (r < cutoff)]
        numbers[i] += np.sum(0.5 * (1.0 + erf(-7.5 * (r / (radius[i] + radius[j]) - 1.0))))
    return numbers


def electronegativities(symbols, positions, cell=None):
    chi, _, kappa, _, _ = parameters(symbols)
    return chi - kappa * np.sqrt(coordination_numbers(symbols, positions, cell))


def molecule_hessian(symbols, positions):
    """d2E / dq dq' of a molecule, term by term."""
    _, gamma, _, a, _ = parameters(symbols)
    hessian = np.diag(gamma + np.sqrt(2.0 / np.pi) / a)
    for i, j in itertools.permutations(range(len(positions)), 2):
        r = np.linalg.norm(positions[i] - positions[j])
        hessian[i, j] = erf(r / np.sqrt(a[i] ** 2 + a[j] ** 2)) / r
    return hessian
