"""The reciprocal sum of the Coulomb interaction by a particle mesh.

Charges are spread on a mesh by B-splines, the mesh is convolved with the influence function by FFT, and the potential
is gathered at the charges by the same B-splines (Essmann et al., J. Chem. Phys. 103, 8577, 1995; with the influence
function of P3M, see ``influence.py``):

    phi_i  ~  sum_j q_j (4 pi / V) sum_{k != 0} exp(-eta^2 k^2 / 2) / k^2 cos(k r_ij),

self-interaction and all, as ``ewald.reciprocal`` has it. The term of k = 0 is left out, in slabs, too. Derivatives are
exact ones of what is computed, so that energy is conserved.
"""

import torch
from torch import Tensor

from .convolution import convolve, filtered, form, transform
from .influence import fixed_influence, influence
from .op import bins_of, gather, spread, stencils


def coordinates(positions: Tensor, cell: Tensor, dims: tuple[int, int, int]) -> Tensor:
    """Mesh coordinates (N, 3) from positions (N, 3) and cell (3, 3), 0 to n within rounding; differentiable."""
    fractional = positions @ torch.linalg.inv(cell)
    # wrapped before it is scaled, so that float32 keeps what digits there are
    return (fractional - fractional.detach().floor()) * fractional.new_tensor(dims)


def mesh_form(
    u: Tensor,
    q: Tensor,
    positions: Tensor,
    cell: Tensor,
    eta: float,
    dims: tuple[int, int, int],
    p: int,
    height: float = 0.0,
) -> Tensor:
    """sum_i u_i phi_i, a scalar in e^2/Å; differentiable to second order in charges, positions and cell.

    Args:
        u, q: (N,) charges, e. If they are one tensor, they are spread and transformed once.
        positions: (N, 3) Å, anywhere.
        cell: (3, 3) Å, rows are lattice vectors; any shape and handedness.
        eta: splitting width, Å.
        dims: points of the mesh.
        p: order of the B-splines, 4 to 8.
        height: for a slab in the plane of the first two vectors: R in Å; the third vector is normal to the plane and of
            length 2 R. See ``ewald.reciprocal``.
    """
    x = coordinates(positions, cell, dims)
    bins = bins_of(x, dims, p)
    g = influence(cell, eta, dims, p, height)
    right = spread(q[:, None], x, dims, 0, p, bins)
    left = right if u is q else spread(u[:, None], x, dims, 0, p, bins)
    return form(left, right, g)


def mesh_potential(
    q: Tensor,
    positions: Tensor,
    cell: Tensor,
    eta: float,
    dims: tuple[int, int, int],
    p: int,
    height: float = 0.0,
) -> Tensor:
    """phi (N,) in e/Å; differentiable to second order. See ``mesh_form``."""
    x = coordinates(positions, cell, dims)
    bins = bins_of(x, dims, p)
    mesh = convolve(spread(q[:, None], x, dims, 0, p, bins), influence(cell, eta, dims, p, height))
    return gather(mesh, x, 0, p, bins)[:, 0]


class MeshPotential:
    """q -> phi for a fixed cell, many times and without derivatives.

    The influence function, the mesh coordinates and the order of the atoms are made once.
    """

    @torch.no_grad()
    def __init__(
        self, positions: Tensor, cell: Tensor, eta: float, dims: tuple[int, int, int], p: int, height: float = 0.0
    ):
        """Arguments as of ``mesh_form``."""
        self.cell, self.dims, self.p = cell, tuple(dims), p
        self.influence = fixed_influence(cell, eta, dims, p, height)
        self.move(positions)

    @torch.no_grad()
    def move(self, positions: Tensor) -> None:
        """Charges are at ``positions`` (N, 3) now."""
        self.stencils = stencils(coordinates(positions, self.cell, self.dims), self.dims, self.p)

    @torch.no_grad()
    def __call__(self, q: Tensor) -> Tensor:
        """phi (N,) from charges q (N,)."""
        mesh = filtered(transform(self.stencils.spread(q.contiguous())), self.influence, self.dims)
        return self.stencils.gather(mesh).clone()
