"""Which pairs and wave vectors a Coulomb sum visits: tables of whole numbers that stay valid while atoms move little.

For Gaussian charges of widths s_i (rho ~ exp(-r^2 / 2 s_i^2), g_ij^2 = s_i^2 + s_j^2), splitting width eta and
requested accuracy a, both sums stop where a Gaussian has fallen to a: x = sqrt(-2 ln a),

    real space        r < x max(eta, g_ij)         erfc(x / sqrt 2) <= a
    reciprocal space  k < x / eta                   exp(-eta^2 k^2 / 2) <= a

A molecule has all pairs, no wave vectors, and eta = infinity. A slab has wave vectors of a cell whose third vector
is normal to the periodic ones and so long that a Coulomb interaction cut off at half of its length, the height R, does
not notice the images in that direction (see ``reciprocal.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import vesin
from torch import Tensor

from ..ewald_mesh.errors import potential_error
from ..ewald_mesh.parameters import choose
from ..neighbours import without_gaps
from . import truncation
from .pair_list import PairList

TALLEST = 1e5  # Å; of a slab, which has as many wave vectors
SMALLEST_MESH = 300  # atoms; below, no mesh is worth a thought
# Seconds of energy and forces on one core (see ``ewald_mesh.parameters``): an entry of the pair list, and an atom and
# wave vector, of which the tables hold half as many again as there are.
_PAIR, _WAVE = 1.2e-8, 1.8e-9
# The same in the iterations of ``charge_solver.together``: once, and in each product.
_TABLE_PAIR, _PRODUCT_PAIR = 1.2e-8, 0.5e-9
_TABLE_WAVE, _PRODUCT_WAVE = 0.5e-9, 0.1e-9
_PRODUCT = 2e-3  # seconds of a product by mesh beside what its size asks for: launches, and the preconditioner
LEAST_EMPTY = 1.5  # times what atoms fill that a cell is taken for partly empty
_LISTED, _TRIED = 1.5e-7, 2e-8  # seconds of an entry of a list of neighbours, and of a distance that may be too long


class CoulombTables(NamedTuple):
    """Tables of a batch of B structures with N atoms, P entries, and Bp structures that have wave vectors.

    Attributes:
        ptr, neighbour, shift: the entries of the real-space sum, see ``PairList``.
        inverse_eta: (B,) float64, 1/Å, zero for a molecule.
        periodic: (Bp,) int64, the structures with wave vectors.
        axes: (Bp, 3) int64, their lattice vectors in the order of the indices of the waves; the axis along which a
            slab is not periodic comes last.
        height: (Bp,) float64, Å, R of a slab, zero for a cell periodic in three directions.
        lines: (Bp, L, 2) int64, first two indices (n1, n2) of the wave vectors.
        waves: (Bp, L, 2, M) float64, how often the wave vectors (n1, n2, m) and (n1, n2, -m), m = 0 ... M - 1, count:
            two, for itself and its negative, or zero.
        mesh: (Bp, 4) int64, points along the three axes and order of the B-splines where a particle mesh stands for the
            wave vectors, else zeros.
        truncation: (B,) float64, 1/Å, a bound on the spectral norm of what the sums leave out of A, see
            ``truncation.py``; zero for a molecule.
        inverse_filling: (B,) float64, volume of a cell, a slab's being 2 R high, over that which atoms fill; one where
            they fill it, and for a molecule.
    """

    ptr: Tensor
    neighbour: Tensor
    shift: Tensor
    inverse_eta: Tensor
    periodic: Tensor
    axes: Tensor
    height: Tensor
    lines: Tensor
    waves: Tensor
    mesh: Tensor
    truncation: Tensor
    inverse_filling: Tensor

    def to(self, device) -> CoulombTables:
        """All tensors on ``device``."""
        return CoulombTables(*(tensor.to(device) for tensor in self))

    def pairs(self, batch: Tensor) -> PairList:
        """The entries of the real-space sum, given the structure of each atom."""
        return PairList(self.ptr, self.neighbour, self.shift, batch)

    def select(self, b: int, first: int, last: int) -> CoulombTables:
        """Those of structure ``b``, which has the atoms ``first`` to ``last`` - 1."""
        start, stop = int(self.ptr[first]), int(self.ptr[last])
        rows = torch.nonzero(self.periodic == b)[:, 0]
        return CoulombTables(
            self.ptr[first : last + 1] - start,
            self.neighbour[start:stop] - first,
            self.shift[start:stop],
            self.inverse_eta[b : b + 1],
            self.periodic[rows] - b,
            *(getattr(self, name)[rows] for name in ("axes", "height", "lines", "waves", "mesh")),
            *(getattr(self, name)[b : b + 1] for name in ("truncation", "inverse_filling")),
        )

    @staticmethod
    def join(parts: Sequence[CoulombTables]) -> CoulombTables:
        """The tables of several batches as one."""
        nodes, entries, structures = 0, 0, 0
        columns = {name: [] for name in CoulombTables._fields}
        lines = max(part.lines.shape[1] for part in parts)
        length = max(part.waves.shape[3] for part in parts)
        for number, part in enumerate(parts):
            columns["ptr"].append((part.ptr if number == 0 else part.ptr[1:]) + entries)
            columns["neighbour"].append(part.neighbour + nodes)
            columns["periodic"].append(part.periodic + structures)
            more, longer = lines - part.lines.shape[1], length - part.waves.shape[3]
            columns["lines"].append(torch.nn.functional.pad(part.lines, (0, 0, 0, more)))
            columns["waves"].append(torch.nn.functional.pad(part.waves, (0, longer, 0, 0, 0, more)))
            for name in ("shift", "inverse_eta", "axes", "height", "mesh", "truncation", "inverse_filling"):
                columns[name].append(getattr(part, name))
            nodes += part.ptr.shape[0] - 1
            entries += part.neighbour.shape[0]
            structures += part.inverse_eta.shape[0]
        return CoulombTables(*(torch.cat(columns[name]) for name in CoulombTables._fields))


def balanced_eta(volume: float, num_atoms: int) -> float:
    """Splitting width in Å that balances the two sums (Jackson & Catlow, Mol. Simul. 1, 207, 1988), times 0.8.

    The reciprocal sum is a matrix product and thus cheaper a term than the error functions of the real sum, so a width
    smaller than the textbook one is faster.
    """
    return 0.8 * (volume**2 / num_atoms) ** (1.0 / 6.0) / np.sqrt(2.0 * np.pi)


def wave_seconds(volume: float, widths: np.ndarray, reach: float, eta: float, products: int = 0) -> float:
    """Time on one core of energy and forces by a sum over wave vectors, and of ``products`` by iteration."""
    n = len(widths)
    sizes, counts = np.unique(widths, return_counts=True)
    radii = reach * np.maximum(eta, np.sqrt(sizes[:, None] ** 2 + sizes**2))
    entries = 4.0 / 3.0 * np.pi / volume * (counts[:, None] * counts * radii**3).sum()
    waves = volume * (reach / eta) ** 3 / (12.0 * np.pi**2)
    if not products:
        return entries * _PAIR + n * waves * _WAVE
    each = entries * _PRODUCT_PAIR + n * waves * _PRODUCT_WAVE
    return entries * _TABLE_PAIR + n * waves * _TABLE_WAVE + products * each


def cheapest_eta(volume: float, widths: np.ndarray, reach: float, products: int) -> float:
    """Splitting width in Å for the least of ``wave_seconds``."""
    candidates = balanced_eta(volume, len(widths)) * 1.05 ** np.arange(-20, 21)
    return min(candidates, key=lambda eta: wave_seconds(volume, widths, reach, eta, products))


def coulomb_tables(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    widths: np.ndarray,
    accuracy: float = 1e-10,
    eta: float | None = None,
    mesh: bool | None = None,
    skin: float = 0.0,
    products: int = 0,
) -> CoulombTables:
    """Tables of one structure.

    Args:
        positions: (n, 3) Å.
        cell: (3, 3) Å, rows are lattice vectors; read for periodic directions only.
        pbc: (3,) bool; none, two or all three directions are periodic.
        widths: (n,) Gaussian widths s_i, Å; zero for a point charge.
        accuracy: relative size at which both sums are cut.
        eta: splitting width in Å (default: ``balanced_eta``, or what is cheapest with a mesh or many products).
        mesh: whether to use a particle mesh (default: in cells, where it is estimated to be faster).
        skin: Å by which pairs may be farther apart, so that the tables hold until an atom has moved by half of it.
        products: of the Coulomb matrix with charges at the same positions that are expected, on CPUs; for the choice of
            ``mesh`` and ``eta``.

    Raises:
        ValueError: one periodic direction, a slab that is too tall, or a mesh for something else than a cell.
    """
    n, pbc = len(positions), np.asarray(pbc, bool)
    if pbc.sum() == 1:
        raise ValueError("the Coulomb sum serves molecules, slabs and cells, not structures periodic in one direction")
    if mesh and not pbc.all():
        raise ValueError("a particle mesh is for cells periodic in all three directions")
    if not pbc.any():
        ptr, neighbour = _all_pairs(n)
        shift = np.zeros((len(neighbour), 3), np.int8)
        return _tables(ptr, neighbour, shift, 0.0, None)

    reach = np.sqrt(-2.0 * np.log(accuracy))
    widest = float(np.sqrt(2.0) * np.max(widths, initial=0.0))
    axes, height = np.arange(3), 0.0
    lattice = np.array(cell, float)
    if pbc.all() and n:
        volume = abs(float(np.linalg.det(lattice)))
        own_eta = eta
        if eta is None:
            own_eta = cheapest_eta(volume, widths, reach, products) if products else balanced_eta(volume, n)
    if pbc.all() and (mesh or (mesh is None and n > SMALLEST_MESH)):
        cutoff = None if eta is None else reach * eta
        chosen = choose(torch.from_numpy(lattice), n, float(n), accuracy, cutoff, widest / np.sqrt(2.0), products)
        if mesh is None:
            by_mesh = chosen.seconds + products * (chosen.product_seconds + _PRODUCT)
            mesh = by_mesh < wave_seconds(volume, widths, reach, own_eta, products)
    if not pbc.all():
        axes = np.argsort(~pbc, kind="stable")  # the periodic ones first
        normal = np.cross(*lattice[axes[:2]])
        area = np.linalg.norm(normal)
        normal /= area
        extent = float(np.ptp(positions @ normal)) if n else 0.0
        if extent > TALLEST:
            raise ValueError(
                f"atoms of the slab lie {extent:.3g} Å apart along its normal, and there would be as many wave "
                f"vectors; at most {TALLEST:g} Å are served"
            )
        if eta is None:
            eta = balanced_eta(area * max(extent, np.sqrt(area)), max(n, 1))
        # the smeared interaction of all pairs, erf(r / sqrt2 eta) / r, must lie within the cut
        height = extent + reach * eta + 1.0 + skin
        lattice = np.stack([lattice[axes[0]], lattice[axes[1]], 2.0 * height * normal])
    elif mesh:
        eta, reach = chosen.eta, chosen.r_cut / chosen.eta
    else:
        eta = own_eta if n else 1.0

    i, j, shift, crowding = near_pairs(positions, cell, pbc, widths, reach, eta, skin)
    left_out = truncation.pairs(crowding, reach, eta, widest)
    order = np.argsort(i, kind="stable")
    ptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(i, minlength=n), out=ptr[1:])
    if np.abs(shift).max(initial=0) > 127:
        raise ValueError("atoms lie more than 127 cells apart; wrap them into the cell first (atoms.wrap())")
    if mesh:
        no_waves = np.zeros((0, 2), np.int64), np.zeros((0, 2, 0))
        waves = axes, height, *no_waves, np.array([*chosen.dims, chosen.p])
        density = crowding + 0.25 / eta**3  # as far as an atom feels itself
        left_out += truncation.MESH * math.sqrt(density) * potential_error(lattice, eta, chosen.dims, chosen.p)
    else:
        waves = axes, height, *wave_indices(lattice, reach / eta), np.zeros(4, np.int64)
        left_out += truncation.waves(crowding, reach, eta)
    if height > 0.0:
        left_out += truncation.slab_images(n, area, height, reach * eta + 1.0, eta)
    return _tables(
        ptr,
        j[order].astype(np.int32),
        shift[order].astype(np.int8),
        1.0 / eta,
        waves,
        left_out,
        inverse_filling(positions, lattice),
    )


def near_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, widths: np.ndarray, reach: float, eta: float, skin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(i, j, shift) of all pairs with r < reach max(eta, g_ij) + skin, in both directions; and how many atoms there are
    in a unit volume where they are dense (1/Å^3).

    A few wide atoms would make the list of all others long. If that is cheaper, distances from these are all computed.
    """

    def cutoff(width: float) -> float:
        return reach * max(eta, np.sqrt(2.0) * width) + skin

    inverse = np.linalg.inv(cell)
    longest, n, volume = cutoff(widths.max(initial=0.0)), len(positions), abs(np.linalg.det(cell))
    reaches = np.where(pbc, np.floor(longest * np.linalg.norm(inverse, axis=0) + 0.5), 0).astype(int)
    images = int(np.prod(2 * reaches + 1))

    def seconds(width: float) -> float:
        """If atoms wider than this are left out of the list."""
        listed = n * (n / volume) * 4.0 / 3.0 * np.pi * cutoff(width) ** 3
        return listed * _LISTED + (widths > width).sum() * n * images * _TRIED

    limit = min(np.unique(widths)[::-1], key=seconds, default=0.0)
    wide = widths > limit
    i, j, shift, distance = vesin.NeighborList(cutoff=cutoff(limit), full_list=True).compute(
        without_gaps(positions, cell, pbc, cutoff(limit)), cell, pbc, quantities="ijSd"
    )
    i, j = i.astype(np.int64), j.astype(np.int64)
    crowding = _crowding(i, distance, n, reach * eta)
    near = distance < reach * np.maximum(eta, np.sqrt(widths[i] ** 2 + widths[j] ** 2)) + skin
    if not wide.any():
        return i[near], j[near], shift[near], crowding
    near &= ~(wide[i] | wide[j])
    rows = np.flatnonzero(wide)
    apart = positions[None, :, :] - positions[rows, None, :]
    whole = np.where(pbc, -np.round(apart @ inverse), 0.0)
    ranges = [np.arange(-m, m + 1) for m in reaches]
    around = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = (apart + whole @ cell)[:, :, None, :] + around @ cell
    allowed = reach * np.maximum(eta, np.sqrt(widths[rows, None] ** 2 + widths**2)) + skin
    row, other, image = np.nonzero((vectors**2).sum(axis=3) < allowed[:, :, None] ** 2)
    shifts = (whole[row, other] + around[image]).astype(shift.dtype)
    row = rows[row]
    others = (row != other) | shifts.any(axis=1)
    row, other, shifts = row[others], other[others], shifts[others]
    back = ~wide[other]  # the entries of the others' rows
    return (
        np.concatenate([i[near], row, other[back]]),
        np.concatenate([j[near], other, row[back]]),
        np.concatenate([shift[near], shifts, -shifts[back]]),
        crowding,
    )


def _crowding(i: np.ndarray, distance: np.ndarray, num_atoms: int, radius: float) -> float:
    """Atoms in a unit volume: the most within ``radius`` of an atom, or the average within half of that, where there is
    vacuum farther away."""
    sphere = 4.0 / 3.0 * np.pi * radius**3
    most = np.bincount(i[distance < radius], minlength=num_atoms).max(initial=0)
    average = np.count_nonzero(distance < 0.5 * radius) / max(num_atoms, 1)
    return float(max(most + 1, 8.0 * (average + 1.0)) / sphere)


def inverse_filling(positions: np.ndarray, lattice: np.ndarray) -> float:
    """How many times larger a cell is than what atoms fill of it, from how often two are in the same of some boxes; but
    one where this is not much more often than if they were at random places, and for few atoms."""
    if len(positions) < 32:
        return 1.0
    edge = (abs(np.linalg.det(lattice)) / max(len(positions) / 2.0, 216.0)) ** (1.0 / 3.0)
    dims = np.maximum(np.round(np.linalg.norm(lattice, axis=1) / edge), 1).astype(np.int64)
    number = int(np.prod(dims))
    fractions = positions @ np.linalg.inv(lattice)
    boxes = np.floor((fractions - np.floor(fractions)) * dims).astype(np.int64) % dims
    counts = np.bincount((boxes[:, 0] * dims[1] + boxes[:, 1]) * dims[2] + boxes[:, 2], minlength=number)
    mean = len(positions) / number
    found = float(np.mean(counts**2)) / mean**2 - 1.0 / mean
    return found if found > LEAST_EMPTY else 1.0


def _all_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    others = np.broadcast_to(np.arange(n, dtype=np.int32), (n, n))[~np.eye(n, dtype=bool)]
    return np.arange(n + 1, dtype=np.int64) * max(n - 1, 0), others


def _tables(
    ptr, neighbour, shift, inverse_eta: float, waves, left_out: float = 0.0, empty: float = 1.0
) -> CoulombTables:
    if waves is None:
        shapes = ((0, 3), np.int64), ((0,), float), ((0, 0, 2), np.int64), ((0, 0, 2, 0), float), ((0, 4), np.int64)
        waves = (np.zeros(shape, kind) for shape, kind in shapes)
    else:
        waves = (np.array(value)[None] for value in waves)
    axes, height, lines, counts, mesh = (torch.from_numpy(value) for value in waves)
    return CoulombTables(
        torch.from_numpy(ptr),
        torch.from_numpy(neighbour),
        torch.from_numpy(shift),
        torch.tensor([inverse_eta], dtype=torch.float64),
        torch.arange(len(height)),
        axes,
        height.double(),
        lines,
        counts,
        mesh,
        *(torch.tensor([value], dtype=torch.float64) for value in (left_out, empty)),
    )


def molecule_tables(sizes: np.ndarray, neighbour: np.ndarray) -> CoulombTables:
    """Tables of several molecules, given their numbers of atoms and, atom by atom, all others of the same molecule."""
    ptr = np.concatenate([[0], np.repeat(sizes - 1, sizes).cumsum()])
    tables = _tables(ptr, neighbour.astype(np.int32), np.zeros((len(neighbour), 3), np.int8), 0.0, None)
    nothing = torch.zeros(len(sizes), dtype=torch.float64)
    return tables._replace(inverse_eta=nothing, truncation=nothing, inverse_filling=torch.ones_like(nothing))


def wave_indices(lattice: np.ndarray, k_max: float) -> tuple[np.ndarray, np.ndarray]:
    """``lines`` (L, 2) and ``waves`` (L, 2, M) of ``CoulombTables`` for the wave vectors 0 < |k| < k_max.

    Of each pair k and -k, the one in the half space of positive first index (then second, then third) is in the tables.
    |n_a| = |k . a| / 2 pi <= k_max |a| / 2 pi bounds the indices in any cell, skewed ones too.
    """
    bounds = np.floor(k_max * np.linalg.norm(lattice, axis=1) / (2.0 * np.pi)).astype(int)
    first, second = np.meshgrid(np.arange(bounds[0] + 1), np.arange(-bounds[1], bounds[1] + 1), indexing="ij")
    lines = np.stack([first.ravel(), second.ravel()], axis=1)
    lines = lines[(lines[:, 0] > 0) | (lines[:, 1] >= 0)]
    third = np.arange(bounds[2] + 1)
    reciprocal = 2.0 * np.pi * np.linalg.inv(lattice).T
    in_plane = (lines @ reciprocal[:2])[:, None, None, :]
    signs = np.array([1, -1])[None, :, None, None]
    k2 = ((in_plane + signs * (third[:, None] * reciprocal[2])) ** 2).sum(axis=-1)
    inside = k2 < k_max**2
    inside[:, 1, 0] = False  # m = 0 is there once
    origin = (lines == 0).all(axis=1)
    inside[origin, 1] = inside[origin, 0, 0] = False
    used = inside.any(axis=(1, 2))
    lines, inside = lines[used], inside[used]
    longest = int(np.flatnonzero(inside.any(axis=(0, 1))).max(initial=-1)) + 1
    return lines, 2.0 * inside[:, :, :longest]
