"""Rotations, and how irreps transform under them."""

import numpy as np
import torch
from e3nn import o3


def random_rotation(improper: bool = False) -> torch.Tensor:
    """(3, 3) float64, determinant 1 or -1."""
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    return rotation * torch.sign(torch.linalg.det(rotation)) * (-1.0 if improper else 1.0)


def representation(irrep, rotation: torch.Tensor) -> torch.Tensor:
    """(2l+1, 2l+1), from how spherical harmonics themselves transform: exact to rounding, unlike Euler angles."""
    sign = torch.sign(torch.linalg.det(rotation))
    points = torch.randn(4 * (2 * irrep.l + 1), 3, dtype=torch.float64)
    before = o3.spherical_harmonics(irrep.l, points, True)
    after = o3.spherical_harmonics(irrep.l, points @ (sign * rotation).T, True)
    matrix = torch.linalg.lstsq(before, after).solution.T
    return matrix if sign > 0 else irrep.p * matrix


def rotated(atoms, rotation: torch.Tensor):
    """A copy, rotated (or reflected) about the origin."""
    copy = atoms.copy()
    matrix = np.asarray(rotation)
    copy.set_cell(atoms.cell.array @ matrix.T, scale_atoms=False)
    copy.positions = atoms.positions @ matrix.T
    return copy
