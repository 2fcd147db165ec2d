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


@dataclass(frozen=True)
class Launch:
    """How a kernel is run: channels a program, warps, and whether each edge has a program of its own."""

    block: int
    num_warps: int
    per_edge: bool = False


class Streamed:
    """Weights of edges from memory, for each edge a row.

    Args:
        body: the kernel that reads them.
        count: number of w.
        w_dim: weights of an edge.
    """

    def __init__(self, body: Source, count: int, w_dim: int):
        self.body, self.count, self.w_dim = body, count, w_dim

    @staticmethod
    def parameters(count: int) -> list[str]:
        """Of a kernel with ``count`` w."""
        return [f"w{number}" for number in range(count)]

    def start(self) -> None:
        """Turn to edge ``e``."""

    def load(self, place: int) -> None:
        """``weight0``, ...: channels u of each w."""
        for number, name in enumerate(self.parameters(self.count)):
            self.body(f"weight{number} = tl.load({name} + e * {self.w_dim} + {place} + u, mask=inside, other=0.0)")


def gather(program: Program, edges: Adjacency, terms: list, transposed: bool = False) -> Tensor:
    """See ``op.gather``."""
    numbers, operands = numbered(terms)
    return run_gather(program, edges, numbers, operands, transposed, Streamed)


def run_gather(program: Program, edges: Adjacency, numbers: tuple, operands: list, transposed: bool, weights) -> Tensor:
    """Sums over edges by the kernels that read such ``weights``; the last of the operands is a v."""
    ptr, edge, node = edges.columns if transposed else edges.rows
    num_nodes = ptr.shape[0] - 1
    out = operands[-1].new_empty(num_nodes, (program.irreps_in if transposed else program.irreps_out).dim)
    if not program.paths or num_nodes == 0:
        return out.zero_()
    for mul, kernel in gather_kernels(program, numbers, transposed, out.dtype, weights):

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
    """See ``op.edge_gradients``."""
    numbers, operands = numbered(terms)
    y = terms[0][1]
    dw, dy = y.new_empty(y.shape[0], program.weight_numel), torch.empty_like(y) if need_y else y.new_empty(0)
    if not need_y:
        operands = operands[1 + max(w for w, _, _ in numbers) :]
    keep = WeightGradients if need_y else WeightGradientsAlone
    run_edge_gradients(dw, dy, program, edges, g, numbers, operands, keep)
    return dw, dy


def run_edge_gradients(
    out: Tensor, dy: Tensor, program: Program, edges: Adjacency, g: Tensor, numbers: tuple, operands: list, keep
) -> None:
    """Fill ``out`` and ``dy`` by the kernels that ``keep`` makes."""
    if not program.paths or not edges.source.shape[0]:
        out.zero_()
        dy.zero_()
        return

    def run(how):
        grid = (edges.source.shape[0] if how.per_edge else g.shape[0],)
        inputs = [edges.destination, edges.source] if how.per_edge else edges.rows
        for kernel in edge_gradients_kernels(program, numbers, g.dtype, how.per_edge, keep):
            kernel[grid](
                out, dy, *inputs, g, *operands, BLOCK=how.block, num_warps=how.num_warps, enable_fp_fusion=True
            )

    signature = edge_gradients_kernels(program, numbers, g.dtype, True, keep)[0]
    choices = [Launch(LANES, 1, True), Launch(LANES, 1, False), Launch(2 * LANES, 1, True)]
    run(fastest(signature, choices, run, g.device))


def candidates(mul: int) -> list[Launch]:
    """Launches worth trying for ``gather``: one or two channels a lane, one warp a program."""
    smallest = min(LANES, triton.next_power_of_2(mul))
    return [Launch(smallest, 1)] + ([Launch(2 * LANES, 2)] if mul >= 2 * LANES else [])


@cache
def gather_kernels(program: Program, terms: tuple, transposed: bool, dtype: torch.dtype, weights) -> list[tuple]:
    """(number of channels, kernel) for each group of paths."""
    return [
        (group[0].mul, _gather_kernel(program, group, terms, transposed, dtype, weights))
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


def _gather_kernel(program: Program, paths: list[Contraction], terms: tuple, transposed: bool, dtype, weights):
    """out[n] = sum over the edges e of node n and the terms (w, Y, v) of w[e] (M(Y[e]) v[node(e)])."""
    num_w, y_names, v_names = names(terms)
    dims = program.irreps_in.dim, program.irreps_out.dim
    v_dim, out_dim = dims[::-1] if transposed else dims
    mul = paths[0].mul
    parameters = ["out", "ptr", "edge", "node", *weights.parameters(num_w), *y_names, *v_names, "BLOCK: tl.constexpr"]
    body = Source("gather", parameters)
    weights = weights(body, num_w, program.weight_numel)
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
        weights.start()
        loaded = set()
        for path in paths:
            weights.load(path.weight)
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
                for number in range(num_w):
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
def edge_gradients_kernels(program: Program, terms: tuple, dtype: torch.dtype, per_edge: bool, keep) -> list:
    """The kernels that do all paths together, each of them those from some rows of v.

    Args:
        keep: what they write, such as ``WeightGradients``. The first kernel sets sums over channels, and the others add
            to them.
    """
    blocks = defaultdict(list)
    for path in program.contractions():
        blocks[path.source, path.mul].append(path)
    parts, products = [{}], 0
    for block, paths in blocks.items():
        whole = num_products(paths, terms, dtype)
        # rows of v are loaded once if all of their paths are in one kernel, which is not possible of too many
        for group in [paths] if whole <= keep.MAX_PRODUCTS else [[path] for path in paths]:
            more = num_products(group, terms, dtype)
            if parts[-1] and products + more > keep.MAX_PRODUCTS:
                parts.append({})
                products = 0
            parts[-1].setdefault(block, []).extend(group)
            products += more
    return [keep(program, part, terms, dtype, number > 0).kernel(per_edge) for number, part in enumerate(parts)]


class WeightGradients:
    """For each edge e of node n, with S_j[u] = sum_ik c_ijk v[node(e), i, u] g[n, k, u] and over the terms (w, Y, v):

    dw[e, u] = sum of sum_j Y[e, j] S_j[u]   and   dY[e, j] = sum of sum_u w[e, u] S_j[u].

    Args:
        blocks: the paths of the kernel, by the rows of v that they read.
        adds: add to the sums over channels that are there.
    """

    NAME, WEIGHTS, NEED_Y, MAX_PRODUCTS = "edge_gradients", Streamed, True, 400

    def __init__(self, program: Program, blocks: dict, terms: tuple, dtype: torch.dtype, adds: bool):
        self.program, self.blocks, self.terms, self.float, self.adds = program, blocks, terms, FLOAT[dtype], adds
        self.num_w, self.y_names, self.v_names = names(terms)

    def kernel(self, per_edge: bool):
        """The kernel, with a program for each edge or for each node."""
        indices = ["destination", "node"] if per_edge else ["ptr", "edge", "node"]
        weights = self.WEIGHTS.parameters(self.num_w) if self.NEED_Y else []
        parameters = ["out", "dy", *indices, "g", *weights, *self.y_names, *self.v_names, "BLOCK: tl.constexpr"]
        self.body = body = Source(self.NAME, parameters)
        self.weights = self.WEIGHTS(body, self.num_w, self.program.weight_numel)
        if per_edge:
            body("e = tl.program_id(0).to(tl.int64)")
            body("n = tl.load(destination + e).to(tl.int64)")
            self.edge()
        else:
            body("n = tl.program_id(0).to(tl.int64)")
            body("first = tl.load(ptr + n)")
            body("last = tl.load(ptr + n + 1)")
            body("for index in range(first, last):")
            with body.indented():
                body("e = tl.load(edge + index).to(tl.int64)")
                self.edge()
        return body.kernel()

    def edge(self) -> None:
        """Edge e of node n."""
        body, y_dim = self.body, self.program.irreps_edge.dim
        body("source = tl.load(node + e).to(tl.int64)")
        for j in range(y_dim):
            for name in self.y_names:
                body(f"{name}_{j} = tl.load({name} + e * {y_dim} + {j})")
            if self.NEED_Y:
                self.zero(f"sum_{j}")
        self.start()
        for (block, mul), paths in self.blocks.items():
            body(f"for start in range(0, {mul}, BLOCK):")
            with body.indented():
                body("u = start + tl.arange(0, BLOCK)")
                body(f"inside = u < {mul}")
                for name in self.v_names:
                    for place in block.places:
                        body(f"{name}_{place} = tl.load({name} + source * {self.program.irreps_in.dim} + {place} + u, "
                             "mask=inside, other=0.0)")  # fmt: skip
                for path in paths:
                    self.path(path)
        for j in range(y_dim if self.NEED_Y else 0):
            self.store_sum(f"sum_{j}", f"dy + e * {y_dim} + {j}")
        self.finish()

    def path(self, path: Contraction) -> None:
        """A path for channels u of edge e."""
        body = self.body
        for k, place in enumerate(path.target.places):
            body(f"g_{k} = tl.load(g + n * {self.program.irreps_out.dim} + {place} + u, mask=inside, other=0.0)")
        if self.NEED_Y:
            self.weights.load(path.weight)
        total = []
        for number, name in enumerate(self.v_names):
            products = defaultdict(lambda: defaultdict(list))  # j -> i -> c g_k
            for (k, i), combination in path.matrix.items():
                for j, coefficient in combination:
                    products[j][i].append(f"{coefficient!r} * g_{k}")
            for j, by_source in sorted(products.items()):
                value = " + ".join(
                    f"{name}_{path.source.places[i]} * ({' + '.join(parts)})" for i, parts in by_source.items()
                )
                body(f"s{number}_{j} = {value}")
            for w, y, v in self.terms:
                if v == number:
                    for j in sorted(products):
                        if self.NEED_Y:
                            body(f"sum_{j} += weight{w} * s{number}_{j}")
                        total.append(f"{self.y_names[y]}_{j} * s{number}_{j}")
        self.keep(path, " + ".join(total))

    def zero(self, name: str) -> None:
        """Begin a sum over channels."""
        self.body(f"{name} = tl.zeros([BLOCK], {self.float})")

    def store_sum(self, name: str, place: str) -> None:
        """Finish a sum over channels."""
        before = f" + tl.load({place})" if self.adds else ""
        self.body(f"tl.store({place}, tl.sum({name}, axis=0){before})")

    def start(self) -> None:
        """Edge e begins."""
        self.weights.start()

    def keep(self, path: Contraction, gradient: str) -> None:
        """What becomes of the gradient by weights u of a path."""
        place = f"out + e * {self.program.weight_numel} + {path.weight} + u"
        self.body(f"tl.store({place}, {gradient}, mask=inside)")

    def finish(self) -> None:
        """Edge e is done."""


class WeightGradientsAlone(WeightGradients):
    """Without dY, so that no weights are read."""

    NAME, NEED_Y = "weight_gradients", False


def names(terms: tuple) -> tuple[int, list[str], list[str]]:
    """Number of w, and parameter names of all Y and all v."""
    num_w, *counts = (1 + max(numbers) for numbers in zip(*terms, strict=True))
    return num_w, *([f"{kind}{number}" for number in range(count)] for kind, count in zip("yv", counts, strict=True))


def scaled(combination: tuple, name: str) -> str:
    """An entry of M(Y)."""
    return "(" + " + ".join(f"{coefficient!r} * {name}_{j}" for j, coefficient in combination) + ")"
