"""The tensor-product convolution for CPUs: LLVM assembly made from a ``Program``.

Two kernels serve the convolution and all its derivatives; both walk the edges of a row (CSR) and keep one vector of
channels in each register.

``gather``   out[n] = sum over edges e of row n, over terms (w, Y, v):  w[e] (M(Y[e]) v[node(e)])
``edges``    for each edge:  dw[e] = sum over terms (w, Y, v):  sum_j Y[e, j] S_j
                             dY[e] = sum over terms (w, Y, v):  sum_u w[e, u] S_j[u]
             with S_j[u] = sum_ik c_ijk v[node(e), i, u] g[n, k, u]

M(Y) is the matrix that a path makes of Y. It does not depend on the channel: it is computed once an edge, for a tile
of edges at a time with one edge a lane, and then broadcast.
"""

from collections import defaultdict
from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ..adjacency import Adjacency
from ..llvm import I64, Emitter, chunk_plan
from ..native import compile_module, launch
from .program import Program

TILE = 16  # edges whose matrices are made together
MAX_ACCUMULATORS = 18  # rows of output held in registers


def gather_source(program: Program, terms: tuple, bits: int, transposed: bool) -> str:
    """The ``gather`` kernel.

    Args:
        terms: (index of w, index of Y, index of v) among the operands of each kind.
        transposed: from z to x.

    Tensors of the kernel: out, ptr, edge (CSR), node of each edge, all w, all Y, all v.
    """
    num_w, num_y, num_v = (1 + max(term[kind] for term in terms) for kind in range(3))
    e = Emitter("gather", bits, 4 + num_w + num_y + num_v)
    out, ptr, edge, node = e.tensors[:4]
    w_tensors = e.tensors[4 : 4 + num_w]
    y_tensors = e.tensors[4 + num_w : 4 + num_w + num_y]
    v_tensors = e.tensors[4 + num_w + num_y :]
    dims = program.irreps_out.dim, program.irreps_in.dim
    v_dim, out_dim = dims if transposed else dims[::-1]
    y_dim, w_dim = program.irreps_edge.dim, program.weight_numel
    paths = program.contractions(transposed)

    # distinct entries of the matrices
    entries = {}
    for path in paths:
        for combination in path.matrix.values():
            entries.setdefault(combination, len(entries))

    w_offset, w_ahead, v_offset = (e.variable(I64, TILE) for _ in range(3))
    final = e.add(e.load_int(ptr, e.end), -1)
    y_tile = [e.variable(e.float, y_dim * TILE) for _ in range(num_y)]
    matrix = [e.variable(e.float, len(entries) * TILE) for _ in range(num_y)]

    with e.loop(e.begin, e.end) as n:
        row = e.at(out, e.mul(n, out_dim))
        with e.loop(0, out_dim) as column:
            e.builder.store(ir.Constant(e.float, 0.0), e.at(row, column))
        last = e.load_int(ptr, e.add(n, 1))
        with e.loop(e.load_int(ptr, n), last, TILE) as first:
            count = e.minimum(e.builder.sub(last, first), TILE)
            with e.loop(0, count) as s:
                index = e.add(first, s)
                edge_id = e.load_int(edge, index)
                e.builder.store(e.mul(edge_id, w_dim), e.at(w_offset, s, I64))
                ahead = e.load_int(edge, e.minimum(e.add(index, TILE), final))
                e.builder.store(e.mul(ahead, w_dim), e.at(w_ahead, s, I64))
                e.builder.store(e.mul(e.load_int(node, edge_id), v_dim), e.at(v_offset, s, I64))
                for tensor, tile in zip(y_tensors, y_tile, strict=True):
                    attributes = e.at(tensor, e.mul(edge_id, y_dim))
                    for j in range(y_dim):
                        e.builder.store(
                            e.builder.load(e.at(attributes, j), typ=e.float), e.at(tile, e.add(j * TILE, s))
                        )
            for tile, table in zip(y_tile, matrix, strict=True):
                for combination, position in entries.items():
                    value = None
                    for j, coefficient in combination:
                        value = e.fma(e.constant(coefficient, TILE), e.load(tile, j * TILE, TILE), value)
                    e.store(value, table, position * TILE)
            for group in _groups(paths):
                for start, vectors, width, used in chunk_plan(group[0].mul, e.lanes):
                    with e.loop(0, vectors) as chunk:
                        channel = e.add(start, e.mul(chunk, width))
                        _gather_group(e, group, terms, entries, row, channel, width, used, count,
                                      w_tensors, v_tensors, matrix, w_offset, w_ahead, v_offset)  # fmt: skip
    return e.source()


def _groups(paths):
    """Paths with the same number of channels whose outputs fit into registers together."""
    groups, rows = [], 0
    for path in sorted(paths, key=lambda path: path.mul):
        fresh = not groups or groups[-1][0].mul != path.mul
        same_target = not fresh and groups[-1][-1].target == path.target
        need = 0 if same_target else path.target.dim
        if fresh or rows + need > MAX_ACCUMULATORS:
            groups.append([])
            rows, need = 0, path.target.dim
        groups[-1].append(path)
        rows += need
    return groups


def _gather_group(e, group, terms, entries, row, channel, width, used, count,
                  w_tensors, v_tensors, matrix, w_offset, w_ahead, v_offset):  # fmt: skip
    accumulators = {}
    for path in group:
        for m in range(path.target.dim):
            position = path.target.start + m * path.target.stride
            if position not in accumulators:
                accumulators[position] = e.variable(e.vector(width))
                e.builder.store(e.load(row, e.add(position, channel), width, used), accumulators[position])
    with e.loop(0, count) as s:
        w_rows = [e.at(tensor, e.add(e.load_int(w_offset, s), channel)) for tensor in w_tensors]
        coming = [e.at(tensor, e.add(e.load_int(w_ahead, s), channel)) for tensor in w_tensors]
        v_rows = [e.at(tensor, e.add(e.load_int(v_offset, s), channel)) for tensor in v_tensors]
        tables = [e.at(table, s) for table in matrix]
        loaded = {}

        def component(v, block, m):
            key = v, block.start + m * block.stride
            if key not in loaded:
                loaded[key] = e.load(v_rows[v], key[1], width, used)
            return loaded[key]

        for path in group:
            products = defaultdict(dict)  # w -> {output component: sum over the terms with this w}
            for w, y, v in terms:
                for (o, i), combination in path.matrix.items():
                    m = e.broadcast(tables[y], entries[combination] * TILE, width)
                    products[w][o] = e.fma(m, component(v, path.source, i), products[w].get(o))
            for w, rows in products.items():
                weight = e.load(w_rows[w], path.weight, width, used)
                e.prefetch(coming[w], path.weight)
                for o, value in rows.items():
                    accumulator = accumulators[path.target.start + o * path.target.stride]
                    e.builder.store(e.fma(weight, value, e.builder.load(accumulator, typ=e.vector(width))), accumulator)
    for position, accumulator in accumulators.items():
        e.store(e.builder.load(accumulator, typ=e.vector(width)), row, e.add(position, channel), used)


def edges_source(program: Program, terms: tuple, bits: int) -> str:
    """The ``edges`` kernel; ``terms`` as in ``gather_source``.

    Tensors of the kernel: dw, dY, ptr, edge (CSR), node of each edge, g, all w, all Y, all v.
    """
    num_w, num_y, num_v = (1 + max(term[kind] for term in terms) for kind in range(3))
    e = Emitter("edges", bits, 6 + num_w + num_y + num_v)
    dw, dy, ptr, edge, node, g = e.tensors[:6]
    w_tensors = e.tensors[6 : 6 + num_w]
    y_tensors = e.tensors[6 + num_w : 6 + num_w + num_y]
    v_tensors = e.tensors[6 + num_w + num_y :]
    y_dim, w_dim, v_dim, g_dim = (
        program.irreps_edge.dim, program.weight_numel, program.irreps_in.dim, program.irreps_out.dim
    )  # fmt: skip
    paths = program.contractions()
    groups = defaultdict(list)
    for path in paths:
        groups[path.source, path.mul].append(path)

    with e.loop(e.begin, e.end) as n:
        g_row = e.at(g, e.mul(n, g_dim))
        with e.loop(e.load_int(ptr, n), e.load_int(ptr, e.add(n, 1))) as index:
            edge_id = e.load_int(edge, index)
            other = e.load_int(node, edge_id)
            dw_row, dy_row = e.at(dw, e.mul(edge_id, w_dim)), e.at(dy, e.mul(edge_id, y_dim))
            w_rows = [e.at(tensor, e.mul(edge_id, w_dim)) for tensor in w_tensors]
            y_rows = [e.at(tensor, e.mul(edge_id, y_dim)) for tensor in y_tensors]
            v_rows = [e.at(tensor, e.mul(other, v_dim)) for tensor in v_tensors]
            sums = {}  # (lanes, j) -> accumulator
            for (_, mul), group in groups.items():
                for start, vectors, width, used in chunk_plan(mul, e.lanes):
                    for j in {j for path in group for entry in path.matrix.values() for j, _ in entry}:
                        if (width, j) not in sums:
                            sums[width, j] = e.variable(e.vector(width))
            for (width, _), accumulator in sums.items():
                e.builder.store(e.constant(0.0, width), accumulator)
            for (_, mul), group in groups.items():
                for start, vectors, width, used in chunk_plan(mul, e.lanes):
                    with e.loop(0, vectors) as chunk:
                        channel = e.add(start, e.mul(chunk, width))
                        _edges_group(e, group, terms, g_row, dw_row, w_rows, y_rows, v_rows, sums, channel, width, used)
            for j in range(y_dim):
                total = None
                for (width, j2), accumulator in sums.items():
                    if j2 == j:
                        total = e.sum(total, e.reduce(e.builder.load(accumulator, typ=e.vector(width))))
                e.builder.store(ir.Constant(e.float, 0.0) if total is None else total, e.at(dy_row, j))
    return e.source()


def _edges_group(e, group, terms, g_row, dw_row, w_rows, y_rows, v_rows, sums, channel, width, used):
    block = group[0].source
    operands = {
        v: [e.load(v_rows[v], e.add(block.start + i * block.stride, channel), width, used) for i in range(block.dim)]
        for v in {v for _, _, v in terms}
    }
    for path in group:
        gradient = [
            e.load(g_row, e.add(path.target.start + k * path.target.stride, channel), width, used)
            for k in range(path.target.dim)
        ]
        total = None
        products = {}
        for v in operands:
            sums_v = {}
            for (k, i), combination in path.matrix.items():
                product = e.builder.fmul(operands[v][i], gradient[k])
                for j, coefficient in combination:
                    sums_v[j] = e.fma(e.constant(coefficient, width), product, sums_v.get(j))
            products[v] = sums_v
        weights = {}
        for w, y, v in terms:
            if w not in weights:
                weights[w] = e.load(w_rows[w], e.add(path.weight, channel), width, used)
            for j, s in products[v].items():
                total = e.fma(e.broadcast(y_rows[y], j, width), s, total)
                accumulator = sums[width, j]
                e.builder.store(e.fma(weights[w], s, e.builder.load(accumulator, typ=e.vector(width))), accumulator)
        e.store(total, dw_row, e.add(path.weight, channel), used)


@cache
def compiled(kind: str, program: Program, terms: tuple, dtype: torch.dtype, transposed: bool = False):
    """The ``gather`` or ``edges`` kernel, ready to run."""
    bits = torch.finfo(dtype).bits
    source = gather_source(program, terms, bits, transposed) if kind == "gather" else edges_source(program, terms, bits)
    return compile_module(kind, source)


def _operands(terms: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[tuple, list[Tensor]]:
    """Number the distinct tensors of each kind; returns the terms in numbers, and all w, all Y, all v."""
    kinds = [{}, {}, {}]
    numbers = tuple(
        tuple(kind.setdefault(id(tensor), (len(kind), tensor))[0] for kind, tensor in zip(kinds, term, strict=True))
        for term in terms
    )
    return numbers, [tensor for kind in kinds for _, tensor in kind.values()]


def gather(program: Program, edges: Adjacency, terms: list, transposed: bool = False) -> Tensor:
    """Run the ``gather`` kernel on ``terms`` (w, Y, v); from z to x if ``transposed``."""
    numbers, tensors = _operands(terms)
    like = terms[0][2]
    if transposed:
        ptr, edge, node, dim = edges.col_ptr, edges.col_edge, edges.destination, program.irreps_in.dim
    else:
        ptr, edge, node, dim = edges.row_ptr, edges.row_edge, edges.source, program.irreps_out.dim
    out = like.new_empty(ptr.shape[0] - 1, dim)
    if program.paths:
        kernel = compiled("gather", program, numbers, like.dtype, transposed)
        launch(kernel, [out, ptr, edge, node, *tensors], ptr)
    else:
        out.zero_()
    return out


def edges(program: Program, adjacency: Adjacency, g: Tensor, terms: list) -> tuple[Tensor, Tensor]:
    """Run the ``edges`` kernel on ``terms`` (w, Y, v); returns dw and dY."""
    numbers, tensors = _operands(terms)
    dw, dy = torch.empty_like(terms[0][0]), torch.empty_like(terms[0][1])
    if program.paths:
        kernel = compiled("edges", program, numbers, g.dtype)
        inputs = [adjacency.row_ptr, adjacency.row_edge, adjacency.source, g, *tensors]
        launch(kernel, [dw, dy, *inputs], adjacency.row_ptr)
    else:
        dy.zero_()
    return dw, dy


def forward(program: Program, adjacency: Adjacency, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """See ``op.tensor_product``."""
    return gather(program, adjacency, [(w, y, x)])


def backward(program: Program, adjacency: Adjacency, g: Tensor, x: Tensor, y: Tensor, w: Tensor, need_x: bool):
    """See ``op.tensor_product_backward``."""
    dx = gather(program, adjacency, [(w, y, g)], transposed=True) if need_x else x.new_empty(0)
    dw, dy = edges(program, adjacency, g, [(w, y, x)])
    return dx, dy, dw


def double_backward(program: Program, adjacency: Adjacency, a, b: Tensor, c: Tensor, g: Tensor, x, y, w):
    """See ``op.tensor_product_double_backward``."""
    with_a = [] if a is None else [(w, y, a)]
    dg = gather(program, adjacency, [*with_a, (w, b, x), (c, y, x)])
    dx = gather(program, adjacency, [(w, b, g), (c, y, g)], transposed=True)
    # d/dY of T(a, Y, w) + T(x, Y, c) and d/dw of T(a, Y, w) + T(x, b, w) in one pass
    dw, dy = edges(program, adjacency, g, [*with_a, (c, b, x)])
    return dg, dx, dy, dw
