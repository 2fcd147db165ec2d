"""The tensor-product convolution for GPUs: Triton kernels made from a ``Program``.

Two kernels serve the convolution and all its derivatives (see ``op.py``). The lanes of a warp are channels. ``gather``
runs one program for each node and block of channels, which walks the node's edges with all outputs in registers, so
nothing is scattered and no atomics are needed; ``edge_gradients`` runs one program for each node (or each edge) and
sums over the channels at the end. Large programs are split into several kernels. Neither the number of nodes nor that
of edges is compiled in.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from ..adjacency import Adjacency
from ..triton_source import FLOAT, Source
from ..tuning import fastest
from .program import Contraction, Program, numbered

LANES = 32
# Registers of 32 bits that outputs and operands of one kernel may take, beside those for what comes and goes.
MAX_REGISTERS = 120
# Products that one kernel may be made of: the compiler keeps more of their operands than there are registers, and takes
# time that grows faster than their number.
MAX_PRODUCTS = 450
MAX_EDGE_PRODUCTS = 400


@dataclass(frozen=True)
class Launch:
    """How a kernel is run: channels a program, warps, and whether each edge has a program of its own."""

    block: int
    num_warps: int
    per_edge: bool = False


def gather(program: Program, edges: Adjacency, terms: list, transposed: bool = False) -> Tensor:
    """See ``op.gather``."""
    numbers, operands = numbered(terms)
    ptr, edge, node = edges.columns if transposed else edges.rows
    num_nodes = ptr.shape[0] - 1
    out = terms[0][2].new_empty(num_nodes, (program.irreps_in if transposed else program.irreps_out).dim)
    if not program.paths or num_nodes == 0:
        return out.zero_()
    for mul, kernel in gather_kernels(program, numbers, transposed, out.dtype):

        def run(how, kernel=kernel, mul=mul):
            grid = (num_nodes, triton.cdiv(mul, how.block))
            kernel[grid](
                out, ptr, edge, node, *operands, BLOCK=how.block, num_warps=how.num_warps, enable_fp_fusion=True
            )

        run(fastest(kernel, candidates(mul), run, out.device))
    return out


def edge_gradients(
    program: Program, edges: Adjacency, g: Tensor, terms: list, need_y: bool = True
) -> tuple[Tensor, Tensor]:
    """See ``op.edge_gradients``; dY comes with dw at no cost worth a kernel of its own."""
    numbers, operands = numbered(terms)
    w, y, _ = terms[0]
    dw, dy = torch.empty_like(w), torch.empty_like(y)
    if not program.paths or y.shape[0] == 0:
        return dw, dy.zero_() if need_y else y.new_empty(0)

    def run(how):
        grid = (y.shape[0] if how.per_edge else g.shape[0],)
        inputs = [edges.destination, edges.source] if how.per_edge else edges.rows
        for kernel in edge_gradients_kernels(program, numbers, g.dtype, how.per_edge):
            kernel[grid](dw, dy, *inputs, g, *operands, BLOCK=how.block, num_warps=how.num_warps, enable_fp_fusion=True)

    signature = edge_gradients_kernels(program, numbers, g.dtype, True)[0]
    choices = [Launch(LANES, 1, True), Launch(LANES, 1, False), Launch(2 * LANES, 1, True)]
    run(fastest(signature, choices, run, g.device))
    return dw, dy if need_y else y.new_empty(0)


def candidates(mul: int) -> list[Launch]:
    """Launches worth trying for ``gather``: one or two channels a lane, one warp a program."""
    smallest = min(LANES, triton.next_power_of_2(mul))
    return [Launch(smallest, 1)] + ([Launch(2 * LANES, 2)] if mul >= 2 * LANES else [])


@cache
def gather_kernels(program: Program, terms: tuple, transposed: bool, dtype: torch.dtype) -> list[tuple]:
    """(number of channels, kernel) for each group of paths."""
    return [
        (group[0].mul, _gather_kernel(program, group, terms, transposed, dtype))
        for group in groups(program, terms, transposed, dtype)
    ]


def groups(program: Program, terms: tuple, transposed: bool, dtype: torch.dtype) -> list[list[Contraction]]:
    """Paths with the same number of channels whose outputs and operands fit into registers together.

    Paths into the same rows stay together, for each row of the output is written by one kernel.
    """
    bundles = defaultdict(list)
    for path in program.contractions(transposed):
        bundles[path.mul, path.target].append(path)
    size = torch.finfo(dtype).bits // 32
    num_v = 1 + max(v for _, _, v in terms)
    fixed = size * program.irreps_edge.dim * (1 + max(y for _, y, _ in terms))
    result, registers, products = [], 0, 0
    for (mul, target), paths in sorted(bundles.items(), key=lambda item: item[0][0]):
        rows = target.dim + num_v * max(path.source.dim for path in paths) / 4  # operands come and go
        more = num_products(paths, terms, dtype)
        joins = bool(result) and result[-1][0].mul == mul
        if not joins or registers + size * rows > MAX_REGISTERS or products + more > MAX_PRODUCTS:
            result.append([])
            registers, products = fixed, 0
        result[-1] += paths
        registers += size * rows
        products += more
    return result


def num_products(paths: list[Contraction], terms: tuple, dtype: torch.dtype) -> int:
    """How much code these paths are; numbers of 64 bits count twice, for they take two registers."""
    size = torch.finfo(dtype).bits // 32
    return size * len(terms) * sum(len(combination) for path in paths for combination in path.matrix.values())


def _gather_kernel(program: Program, paths: list[Contraction], terms: tuple, transposed: bool, dtype: torch.dtype):
    """out[n] = sum over the edges e of node n and the terms (w, Y, v) of w[e] (M(Y[e]) v[node(e)])."""
    w_names, y_names, v_names = names(terms)
    dims = program.irreps_in.dim, program.irreps_out.dim
    v_dim, out_dim = dims[::-1] if transposed else dims
    mul = paths[0].mul
    body = Source("gather", ["out", "ptr", "edge", "node", *w_names, *y_names, *v_names, "BLOCK: tl.constexpr"])
    body("n = tl.program_id(0).to(tl.int64)")
    body("u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)")
    body(f"inside = u < {mul}")
    places = sorted({place for path in paths for place in path.target.places})
    for place in places:
        body(f"o{place} = tl.zeros([BLOCK], {FLOAT[dtype]})")
    body("first = tl.load(ptr + n)")
    body("last = tl.load(ptr + n + 1)")
    body("for index in range(first, last):")
    with body.indented():
        body("e = tl.load(edge + index).to(tl.int64)")
        body("source = tl.load(node + e).to(tl.int64)")
        used = sorted({j for path in paths for combination in path.matrix.values() for j, _ in combination})
        for name in y_names:
            for j in used:
                body(f"{name}_{j} = tl.load({name} + e * {program.irreps_edge.dim} + {j})")
        loaded = set()
        for path in paths:
            for number, name in enumerate(w_names):
                body(f"weight{number} = tl.load({name} + e * {program.weight_numel} + {path.weight} + u, "
                     "mask=inside, other=0.0)")  # fmt: skip
            for name in v_names:
                for place in path.source.places:
                    if (name, place) not in loaded:
                        loaded.add((name, place))
                        body(f"{name}_{place} = tl.load({name} + source * {v_dim} + {place} + u, "
                             "mask=inside, other=0.0)")  # fmt: skip
            by_component = defaultdict(list)
            for (k, i), combination in path.matrix.items():
                by_component[k].append((path.source.places[i], combination))
            for k, entries in by_component.items():
                for number in range(len(w_names)):
                    products = [
                        f"{scaled(combination, y_names[y])} * {v_names[v]}_{place}"
                        for w, y, v in terms
                        if w == number
                        for place, combination in entries
                    ]
                    body(f"o{path.target.places[k]} += weight{number} * ({' + '.join(products)})")
    for place in places:
        body(f"tl.store(out + n * {out_dim} + {place} + u, o{place}, mask=inside)")
    return body.kernel()


@cache
def edge_gradients_kernels(program: Program, terms: tuple, dtype: torch.dtype, per_edge: bool) -> list:
    """For each edge e of node n, with S_j[u] = sum_ik c_ijk v[node(e), i, u] g[n, k, u] and over the terms (w, Y, v):

    dw[e, u] = sum of sum_j Y[e, j] S_j[u]   and   dY[e, j] = sum of sum_u w[e, u] S_j[u].

    Each kernel does the paths from some rows of v; the first sets dY and the others add to it.
    """
    blocks = defaultdict(list)
    for path in program.contractions():
        blocks[path.source, path.mul].append(path)
    parts, products = [{}], 0
    for block, paths in blocks.items():
        more = num_products(paths, terms, dtype)
        if parts[-1] and products + more > MAX_EDGE_PRODUCTS:
            parts.append({})
            products = 0
        parts[-1][block] = paths
        products += more
    return [
        _edge_gradients_kernel(program, part, terms, dtype, per_edge, number > 0) for number, part in enumerate(parts)
    ]


def _edge_gradients_kernel(
    program: Program, blocks: dict, terms: tuple, dtype: torch.dtype, per_edge: bool, adds: bool
):
    w_names, y_names, v_names = names(terms)
    indices = ["destination", "node"] if per_edge else ["ptr", "edge", "node"]
    body = Source("edge_gradients", ["dw", "dy", *indices, "g", *w_names, *y_names, *v_names, "BLOCK: tl.constexpr"])
    if per_edge:
        body("e = tl.program_id(0).to(tl.int64)")
        body("n = tl.load(destination + e).to(tl.int64)")
        _edge(body, program, blocks, terms, dtype, adds)
    else:
        body("n = tl.program_id(0).to(tl.int64)")
        body("first = tl.load(ptr + n)")
        body("last = tl.load(ptr + n + 1)")
        body("for index in range(first, last):")
        with body.indented():
            body("e = tl.load(edge + index).to(tl.int64)")
            _edge(body, program, blocks, terms, dtype, adds)
    return body.kernel()


def _edge(body: Source, program: Program, blocks: dict, terms: tuple, dtype: torch.dtype, adds: bool) -> None:
    w_names, y_names, v_names = names(terms)
    y_dim = program.irreps_edge.dim
    body("source = tl.load(node + e).to(tl.int64)")
    for j in range(y_dim):
        for name in y_names:
            body(f"{name}_{j} = tl.load({name} + e * {y_dim} + {j})")
        body(f"sum_{j} = tl.zeros([BLOCK], {FLOAT[dtype]})")
    for (block, mul), paths in blocks.items():
        body(f"for start in range(0, {mul}, BLOCK):")
        with body.indented():
            body("u = start + tl.arange(0, BLOCK)")
            body(f"inside = u < {mul}")
            for name in v_names:
                for place in block.places:
                    body(f"{name}_{place} = tl.load({name} + source * {program.irreps_in.dim} + {place} + u, "
                         "mask=inside, other=0.0)")  # fmt: skip
            for path in paths:
                for k, place in enumerate(path.target.places):
                    body(f"g_{k} = tl.load(g + n * {program.irreps_out.dim} + {place} + u, mask=inside, other=0.0)")
                for number, name in enumerate(w_names):
                    body(f"weight{number} = tl.load({name} + e * {program.weight_numel} + {path.weight} + u, "
                         "mask=inside, other=0.0)")  # fmt: skip
                total = []
                for number, name in enumerate(v_names):
                    products = defaultdict(lambda: defaultdict(list))  # j -> i -> c g_k
                    for (k, i), combination in path.matrix.items():
                        for j, coefficient in combination:
                            products[j][i].append(f"{coefficient!r} * g_{k}")
                    for j, by_source in sorted(products.items()):
                        value = " + ".join(
                            f"{name}_{block.places[i]} * ({' + '.join(parts)})" for i, parts in by_source.items()
                        )
                        body(f"s{number}_{j} = {value}")
                    for w, y, v in terms:
                        if v == number:
                            for j in sorted(products):
                                body(f"sum_{j} += weight{w} * s{number}_{j}")
                                total.append(f"{y_names[y]}_{j} * s{number}_{j}")
                body(f"tl.store(dw + e * {program.weight_numel} + {path.weight} + u, {' + '.join(total)}, mask=inside)")
    for j in range(y_dim):
        before = f" + tl.load(dy + e * {y_dim} + {j})" if adds else ""
        body(f"tl.store(dy + e * {y_dim} + {j}, tl.sum(sum_{j}, axis=0){before})")


def names(terms: tuple) -> tuple[list[str], ...]:
    """Parameter names of all w, all Y and all v."""
    return tuple(
        [f"{kind}{number}" for number in range(1 + max(numbers))]
        for kind, numbers in zip("wyv", zip(*terms, strict=True), strict=True)
    )


def scaled(combination: tuple, name: str) -> str:
    """An entry of M(Y)."""
    return "(" + " + ".join(f"{coefficient!r} * {name}_{j}" for j, coefficient in combination) + ")"
