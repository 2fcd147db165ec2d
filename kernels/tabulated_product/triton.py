"""The tabulated convolution for GPUs: the kernels of ``tensor_product/triton.py`` with weights from a table.

The table stays in the caches. Its gradient alone goes by way of the gradients by the weights of each edge.
"""

import torch
from torch import Tensor

from ..adjacency import Adjacency
from ..radial_table.intervals import Intervals
from ..radial_table.naive import ROWS
from ..radial_table.triton import rows_gradient
from ..tensor_product.program import Contraction, Program, numbered
from ..tensor_product.triton import Streamed, WeightGradients, run_edge_gradients, run_gather
from ..tensor_product.triton import edge_gradients as weight_gradients


def gather(
    program: Program, edges: Adjacency, interval: Tensor, table: Tensor, terms: list, transposed: bool = False
) -> Tensor:
    """See ``op.gather``."""
    numbers, operands = numbered(terms)
    return run_gather(program, edges, numbers, [table, interval, *operands], transposed, Interpolated)


def edge_gradients(
    program: Program, edges: Adjacency, interval: Tensor, table: Tensor, g: Tensor, term: tuple
) -> tuple[Tensor, Tensor]:
    """See ``op.edge_gradients``."""
    numbers, operands = numbered([term])
    by_coefficients, dy = (torch.empty_like(tensor) for tensor in term[:2])
    operands = [table, interval, *operands]
    run_edge_gradients(by_coefficients, dy, program, edges, g, numbers, operands, CoefficientGradients)
    return by_coefficients, dy


def table_gradient(
    program: Program, edges: Adjacency, interval: Tensor, num_rows: int, g: Tensor, terms: list
) -> Tensor:
    """See ``op.table_gradient``."""
    total, by_coefficients, intervals = None, {}, Intervals.of(interval, num_rows - (ROWS - 1))
    for coefficients, y, v in terms:
        by_coefficients.setdefault(id(coefficients), (coefficients, []))[1].append((None, y, v))
    for coefficients, own in by_coefficients.values():
        dw, _ = weight_gradients(program, edges, g, own, need_y=False)
        rows = rows_gradient(coefficients, dw, intervals)
        total = rows if total is None else total.add_(rows)
    return total


class Interpolated(Streamed):
    """Weights of edges from rows of a table, for each vector of coefficients."""

    @staticmethod
    def parameters(count: int) -> list[str]:
        return ["table", "interval", *(f"c{number}" for number in range(count))]

    def start(self) -> None:
        self.body(f"rows = table + tl.load(interval + e).to(tl.int64) * {self.w_dim}")
        for number in range(self.count):
            for j in range(ROWS):
                self.body(f"c{number}_{j} = tl.load(c{number} + e * {ROWS} + {j})")

    def load(self, place: int) -> None:
        for j in range(ROWS):
            self.body(f"row_{j} = tl.load(rows + {j * self.w_dim + place} + u, mask=inside, other=0.0)")
        for number in range(self.count):
            self.body(f"weight{number} = {' + '.join(f'c{number}_{j} * row_{j}' for j in range(ROWS))}")


class CoefficientGradients(WeightGradients):
    """For each edge dY, and dC[e, j] = <T[interval(e) + j], dw[e]>."""

    NAME, WEIGHTS, MAX_PRODUCTS = "tabulated_edge_gradients", Interpolated, 160

    def start(self) -> None:
        super().start()
        for j in range(ROWS):
            self.zero(f"by_row_{j}")

    def keep(self, path: Contraction, gradient: str) -> None:
        self.body(f"gradient = {gradient}")
        for j in range(ROWS):
            self.body(f"by_row_{j} += gradient * row_{j}")

    def finish(self) -> None:
        for j in range(ROWS):
            self.store_sum(f"by_row_{j}", f"out + e * {ROWS} + {j}")
