"""Derivatives by central differences of fourth order, and relative errors."""

import numpy as np

# f'(0) = sum of weight * f(step) / h, with an error of h^4 f''''' / 30
STENCIL = ((-2, 1.0 / 12.0), (-1, -8.0 / 12.0), (1, 8.0 / 12.0), (2, -1.0 / 12.0))


def relative_error(value, reference) -> float:
    """|value - reference| / |reference| in the 2-norm."""
    value, reference = np.asarray(value, float), np.asarray(reference, float)
    assert value.shape == reference.shape
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def displaced(atoms, h: float) -> list:
    """The structures that ``numerical_forces`` needs, in its order."""
    out = []
    for index in np.ndindex(atoms.positions.shape):
        for step, _ in STENCIL:
            copy = atoms.copy()
            copy.positions[index] += step * h
            out.append(copy)
    return out


def numerical_forces(energies, atoms, h: float = 1e-3) -> np.ndarray:
    """-dE/dr; ``energies`` maps a list of structures to an array."""
    values = np.asarray(energies(displaced(atoms, h))).reshape(-1, len(STENCIL))
    return -(values @ [weight for _, weight in STENCIL]).reshape(atoms.positions.shape) / h


def numerical_virial(energies, atoms, h: float = 1e-3) -> np.ndarray:
    """dE/d(strain), the strain symmetrised and acting on cell and positions."""
    copies = []
    for a, b in np.ndindex(3, 3):
        for step, _ in STENCIL:
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * step * h
            strain[b, a] += 0.5 * step * h
            copy = atoms.copy()
            if atoms.pbc.any():
                copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=False)
            copy.positions = atoms.positions @ (np.eye(3) + strain)
            copies.append(copy)
    values = np.asarray(energies(copies)).reshape(-1, len(STENCIL))
    return (values @ [weight for _, weight in STENCIL]).reshape(3, 3) / h


def numerical_gradient(function, x: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """Gradient of a scalar function of an array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        for step, weight in STENCIL:
            moved = x.copy()
            moved[index] += step * h
            gradient[index] += weight * function(moved) / h
    return gradient
