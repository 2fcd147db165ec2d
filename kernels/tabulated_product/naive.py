"""The specification of the tabulated convolution: interpolation, then the convolution, in plain PyTorch."""

from torch import Tensor, nn

from ..adjacency import Adjacency
from ..radial_table.naive import interpolate
from ..tensor_product.naive import NaiveConvolution
from ..tensor_product.program import Program


class NaiveTabulatedConvolution(nn.Module):
    """Convolution of a ``Program`` with weights from a table, with any number of autograd derivatives."""

    def __init__(self, program: Program):
        super().__init__()
        self.convolution = NaiveConvolution(program)

    def forward(
        self,
        x: Tensor,
        edge_attributes: Tensor,
        coefficients: Tensor,
        table: Tensor,
        interval: Tensor,
        edges: Adjacency,
    ) -> Tensor:
        """Convolve.

        Args:
            x: (N, irreps_in.dim) node features.
            edge_attributes: (E, irreps_edge.dim).
            coefficients: (E, 6), splines at the edges; see ``radial_table/naive.py``.
            table: (M + 5, weight_numel).
            interval: (E,) int64, the first row of the table that an edge reads.
            edges: the graph.

        Returns:
            (N, irreps_out.dim).
        """
        return self.convolution(x, edge_attributes, interpolate(coefficients, table, interval), edges)
