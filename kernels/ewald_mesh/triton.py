"""Particle-mesh kernels for GPUs.

Spreading: one program a pencil of mesh points, a segment of the last axis, which walks the atoms of the bins whose
stencils reach it and keeps its points in registers; nothing is scattered and no atomics are needed, so the result is
the same bits every time. Gathering: one program a block of atoms, with the points of a row of the stencil side by side.
Both read splines from a table that a first kernel writes, since a spreading atom is seen by many programs.
"""

from functools import cache

import triton
from torch import Tensor

from ..triton_source import Source
from . import bins as by_torch
from .bins import Bins, segments
from .naive import components, polynomials

ATOMS = 64  # of a program of ``splines``
ROWS = 16  # atoms of a program of ``gather``
# With more warps of ``gather``, one point a lane, ptxas aims at so few registers that it spills some.
SPLINES_WARPS, GATHER_WARPS, SPREAD_WARPS = 2, 2, 1


def sort(x: Tensor, dims: tuple[int, int, int], p: int) -> Bins:
    """See ``op.mesh_bins``."""
    return by_torch.sort(x, dims, p)


def splines(place: Tensor, order: int, p: int) -> Tensor:
    """(N, 3, order + 1, p): of each atom and axis, the splines and their derivatives."""
    out = place.new_empty(place.shape[0], 3, order + 1, p)
    if len(place):
        grid = (triton.cdiv(3 * len(place), ATOMS),)
        splines_kernel(p, order)[grid](out, place, 3 * len(place), ATOMS, num_warps=SPLINES_WARPS)
    return out


def gather(mesh: Tensor, bins: Bins, order: int, p: int) -> Tensor:
    """See ``op.mesh_gather``."""
    num_atoms = bins.order.shape[0]
    out = mesh.new_empty(num_atoms, len(components(order)))
    if num_atoms:
        grid = (triton.cdiv(num_atoms, ROWS),)
        gather_kernel(p, order)[grid](
            out, mesh, splines(bins.place, order, p), bins.order, bins.start, num_atoms, *mesh.shape,
            ROWS, triton.next_power_of_2(p), num_warps=GATHER_WARPS,
        )  # fmt: skip
    return out


def spread(c: Tensor, bins: Bins, dims: tuple[int, int, int], order: int, p: int) -> Tensor:
    """See ``op.mesh_spread``."""
    out, count = c.new_empty(dims), segments(dims[2])
    block = triton.next_power_of_2(triton.cdiv(dims[2], count))
    grid = (dims[0] * dims[1], count)
    spread_kernel(p, order)[grid](
        out, c, splines(bins.place, order, p), bins.order, bins.ptr, bins.start, *dims, count, block,
        num_warps=SPREAD_WARPS,
    )  # fmt: skip
    return out


@cache
def splines_kernel(p: int, order: int):
    """One lane an atom and axis; polynomials by Horner's rule."""
    body = Source(f"mesh_splines_{p}_{order}", ["out", "place", "count", "BLOCK: tl.constexpr"])
    body("i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
    body("s = tl.load(place + i, mask=i < count, other=0.0)")
    for derivative in range(order + 1):
        rows = polynomials(p, derivative).tolist()
        for j in range(p):
            # a constant in double precision would make all of a float32 kernel double
            body(f"v = tl.full([BLOCK], {rows[p - 1 - derivative][j]!r}, s.dtype)")
            for row in rows[p - 2 - derivative :: -1] if derivative < p - 1 else []:
                body(f"v = v * s + tl.full([BLOCK], {row[j]!r}, s.dtype)")
            body(f"tl.store(out + i * {(order + 1) * p} + {derivative * p + j}, v, mask=i < count)")
    return body.kernel()


def _factors(body: Source, order: int, p: int, axis: int, name: str, j: str, mask: str) -> None:
    """Lines that load the derivatives of an axis's splines at point ``j`` into name0, name1, ..."""
    for derivative in range(order + 1):
        place = f"w + {(axis * (order + 1) + derivative) * p} + {j}"
        body(f"{name}{derivative} = tl.load({place}{mask})")


@cache
def gather_kernel(p: int, order: int):
    """out[atom] = sums over the stencil of the mesh with each component of the jet: sum_c D_c(k) S_ab(k) in the end,
    where S_ab = sum over the rows (i, j) of D_a(i) D_b(j) times the row's points k."""
    parameters = ["out", "mesh", "table", "order", "start", "count", "n1", "n2", "n3"]
    body = Source(f"mesh_gather_{p}_{order}", [*parameters, "ROWS: tl.constexpr", "P: tl.constexpr"])
    body("row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)")
    body("inside = row < count")
    body("point = tl.arange(0, P)")
    body(f"both = inside[:, None] & (point < {p})[None, :]")
    for axis in range(3):
        body(f"s{axis} = tl.load(start + row * 3 + {axis}, mask=inside, other=0)")
    body("column = s2[:, None] + point[None, :]")
    body("column = tl.where(column < n3, column, column - n3)")
    body(f"w = table + row * {3 * (order + 1) * p}")
    pairs = [(a, b) for a in range(order + 1) for b in range(order + 1 - a)]
    for a, b in pairs:
        body(f"sum{a}{b} = tl.zeros([ROWS, P], out.dtype.element_ty)")
    body(f"for i in range({p}):")
    with body.indented():
        body("k = s0 + i")
        body("plane = tl.where(k < n1, k, k - n1) * n2")
        _factors(body, order, p, 0, "u", "i", ", mask=inside, other=0.0")
        for b in range(order + 1):
            body(f"part{b} = tl.zeros([ROWS, P], out.dtype.element_ty)")
        body(f"for j in range({p}):")
        with body.indented():
            body("k = s1 + j")
            body("base = (plane + tl.where(k < n2, k, k - n2)) * n3")
            body("values = tl.load(mesh + base[:, None] + column, mask=both, other=0.0)")
            _factors(body, order, p, 1, "v", "j", ", mask=inside, other=0.0")
            for b in range(order + 1):
                body(f"part{b} += v{b}[:, None] * values")
        for a, b in pairs:
            body(f"sum{a}{b} += u{a}[:, None] * part{b}")
    body("atom = tl.load(order + row, mask=inside, other=0)")
    body("w = w[:, None] + point[None, :]")
    _factors(body, order, p, 2, "w", "0", ", mask=both, other=0.0")
    for number, (a, b, c) in enumerate(components(order)):
        body(f"total = tl.sum(sum{a}{b} * w{c}, axis=1)")
        body(f"tl.store(out + atom * {len(components(order))} + {number}, total, mask=inside)")
    return body.kernel()


@cache
def spread_kernel(p: int, order: int):
    """Points of one segment of row (k1, k2): a loop over the rows of bins (k1 - i, k2 - j), and over the segment's own
    atoms and those of the one before, which reach into it. A segment is wider than a stencil unless it is all there is.
    """
    parameters = ["out", "c", "table", "order", "ptr", "start", "n1", "n2", "n3", "segments"]
    body = Source(f"mesh_spread_{p}_{order}", [*parameters, "BLOCK: tl.constexpr"])
    width = len(components(order))
    body("k1 = tl.program_id(0) // n2")
    body("k2 = tl.program_id(0) % n2")
    body("segment = tl.program_id(1)")
    body("first = (segment * n3 + segments - 1) // segments")
    body("last = ((segment + 1) * n3 + segments - 1) // segments")
    body("k = first + tl.arange(0, BLOCK)")
    body("total = tl.zeros([BLOCK], out.dtype.element_ty)")
    body(f"for ij in range({p * p}):")
    with body.indented():
        body(f"i = ij // {p}")
        body(f"j = ij % {p}")
        body("bin = tl.where(k1 >= i, k1 - i, k1 - i + n1).to(tl.int64) * n2")
        body("bin = (bin + tl.where(k2 >= j, k2 - j, k2 - j + n2)) * segments")
        body("for back in range(0, tl.minimum(segments, 2)):")
        with body.indented():
            body("here = bin + tl.where(segment >= back, segment - back, segment - back + segments)")
            body("for index in range(tl.load(ptr + here), tl.load(ptr + here + 1)):")
            with body.indented():
                body("atom = tl.load(order + index).to(tl.int64)")
                body("point = k - tl.load(start + index * 3 + 2)")
                body("point = tl.where(point < 0, point + n3, point)")
                body(f"w = table + tl.cast(index, tl.int64) * {3 * (order + 1) * p}")
                _factors(body, order, p, 0, "u", "i", "")
                _factors(body, order, p, 1, "v", "j", "")
                _factors(body, order, p, 2, "w", "point", f", mask=point < {p}, other=0.0")
                sums: dict[int, list[str]] = {}
                for number, (a, b, d) in enumerate(components(order)):
                    body(f"c{number} = tl.load(c + atom * {width} + {number})")
                    sums.setdefault(d, []).append(f"c{number} * u{a} * v{b}")
                for d, terms in sums.items():
                    body(f"total += ({' + '.join(terms)}) * w{d}")
    body("row = (k1.to(tl.int64) * n2 + k2) * n3")
    body("tl.store(out + row + k, total, mask=k < last)")
    return body.kernel()
