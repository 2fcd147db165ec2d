"""The real-space sum for GPUs: a Triton kernel that does the formulas for a block of entries of a row, one a lane."""

from functools import cache

import torch
from torch import Tensor

from ..triton_source import Operations, Source
from . import formulas
from .formulas import Entry
from .pair_list import PairList
from .rows import KINDS

BLOCK = 64


def warps(name: str, lanes: int | None = None) -> int:
    """Of a program: one entry a lane, but two for "values", since ptxas fits one into few registers and spills."""
    lanes = lanes or (64 if torch.version.hip else 32)
    return 1 if name == "values" else BLOCK // lanes


def values(x: Tensor, a: Tensor, cell: Tensor, beta: Tensor, pairs: PairList) -> Tensor:
    """See ``op.pair_values``."""
    out = x.new_empty(pairs.neighbour.shape[0])
    return _run("values", [x, a], [cell, beta], pairs, [out])[0]


def product(values: Tensor, q: Tensor, pairs: PairList) -> Tensor:
    """See ``op.pair_product``."""
    out = torch.empty_like(q)
    if pairs.num_nodes:
        product_kernel()[(pairs.num_nodes,)](
            out, values, q, pairs.ptr, pairs.neighbour, BLOCK=BLOCK, num_warps=warps("product")
        )
    return out


def potential(q, x, a, cell, beta, pairs: PairList) -> Tensor:
    """See ``op.coulomb_pairs``."""
    return _run("potential", [q, x, a], [cell, beta], pairs)[0]


def gradient(u, q, x, a, cell, beta, pairs: PairList) -> list[Tensor]:
    """See ``op.coulomb_pairs_gradient``; the last result is (N, 9)."""
    return _run("gradient", [u, q, x, a], [cell, beta], pairs)


def pull(u, q, x, a, cell, beta, pairs: PairList) -> list[Tensor]:
    """See ``op.pair_pull``; the last result is (N, 9)."""
    if a is None:
        return _run("point_pull", [u, q, x], [cell, beta], pairs)
    return _run("pull", [u, q, x, a], [cell, beta], pairs)


def change(dx, da, dcell, u, q, x, a, cell, beta, pairs: PairList) -> list[Tensor]:
    """See ``op.coulomb_pairs_change``; the last result is (N, 9)."""
    return _run("change", [dx, da, u, q, x, a], [dcell, cell, beta], pairs)


def _run(name: str, atoms: list[Tensor], structures: list[Tensor], pairs: PairList, out=None) -> list[Tensor]:
    if out is None:
        out = [atoms[0].new_empty(shape) for shape in KINDS[name].shapes(pairs.num_nodes)]
    if pairs.num_nodes:
        pair_kernel(name)[(pairs.num_nodes,)](
            *out, *pairs, *atoms, *structures, BLOCK=BLOCK, num_warps=warps(name), enable_fp_fusion=True
        )
    return out


@cache
def product_kernel():
    """out[i] = sum over the entries of row i of values q_j."""
    body = Source("coulomb_product", ["out", "values", "q", "ptr", "neighbour", "BLOCK: tl.constexpr"])
    body("i = tl.program_id(0).to(tl.int64)")
    body("first = tl.load(ptr + i)")
    body("last = tl.load(ptr + i + 1)")
    body("total = tl.zeros([BLOCK], tl.float64)")
    body("for start in range(first, last, BLOCK):")
    with body.indented():
        body("place = start + tl.arange(0, BLOCK)")
        body("inside = place < last")
        body("j = tl.load(neighbour + place, mask=inside, other=0).to(tl.int64)")
        body("total += tl.load(values + place, mask=inside, other=0.0) * tl.load(q + j)")
    body("tl.store(out + i, tl.sum(total, axis=0))")
    return body.kernel()


@cache
def pair_kernel(name: str):
    """One of the row sums of ``formulas`` as a kernel, one program an atom."""
    kind = KINDS[name]
    out = [f"out{k}" for k in range(max(1, len(kind.columns)))]
    lists = ["ptr", "neighbour", "shift", "batch"]
    body = Source(f"coulomb_{name}", [*out, *lists, *kind.by_atom, *kind.by_structure, "BLOCK: tl.constexpr"])
    ops = Operations(body)
    body("i = tl.program_id(0).to(tl.int64)")
    body("structure = tl.load(batch + i)")
    own = {key: [ops.named(f"tl.load({key} + i * {n} + {k})") for k in range(n)] for key, n in kind.by_atom.items()}
    shared = {
        key: [ops.named(f"tl.load({key} + structure * {n} + {k})") for k in range(n)]
        for key, n in kind.by_structure.items()
    }
    sums = [f"sum{k}" for k in range(sum(kind.columns))]
    for total in sums:
        body(f"{total} = tl.zeros([BLOCK], tl.float64)")
    body("first = tl.load(ptr + i)")
    body("last = tl.load(ptr + i + 1)")
    body("for start in range(first, last, BLOCK):")
    with body.indented():
        body("place = start + tl.arange(0, BLOCK)")
        body("inside = place < last")
        # beyond the end, the last entry once more, with charges of zero
        body("place = tl.minimum(place, last - 1).to(tl.int64)")
        body("j = tl.load(neighbour + place).to(tl.int64)")
        theirs = {
            key: [ops.named(f"tl.load({key} + j * {n} + {k})") for k in range(n)] for key, n in kind.by_atom.items()
        }
        n = [ops.named(f"tl.load(shift + place * 3 + {k}).to(tl.float64)") for k in range(3)]
        charges = {}
        for charge in ("u", "q"):
            if charge in kind.by_atom:
                charges[charge] = ops.named(f"tl.where(inside, {theirs[charge][0].name}, 0.0)")
        entry = Entry.of_row(own, theirs, shared, n, charges)
        terms = getattr(formulas, name)(entry, shared["beta"][0], ops)
        if name == "values":
            body(f"tl.store(out0 + place, {terms[0].name})")
        for total, term in zip(sums, terms, strict=False):
            body(f"{total} += {term.name}")
    totals = iter(sums)
    for pointer, width in zip(out, kind.columns, strict=False):
        for k in range(width):
            body(f"tl.store({pointer} + i * {width} + {k}, tl.sum({next(totals)}, axis=0))")
    return body.kernel()
