"""The specification of the tensor-product convolution in plain PyTorch.

z[i, k, u] = sum_{e -> i} w[e, u] sum_{m1, m2} C[m1, m2, k] x[src(e), m1, u] Y[e, m2]        for every path
"""

import torch
from torch import Tensor, nn

from .program import Program, coupling


class NaiveConvolution(nn.Module):
    """Convolution of a ``Program`` with any number of autograd derivatives, for all devices and float types.

    Paths that share an input block are done together: C is contracted with Y first, one small matrix an edge,
    which then acts on all channels.
    """

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.groups = []  # (input slice, 2 l1 + 1, multiplicity, weight slice)
        columns = []  # where each entry of the stacked groups goes in z
        out_slices = program.irreps_out.slices()
        weight_start = 0
        for block, (mul, ir1) in enumerate(program.irreps_in):
            paths = [path for path in program.paths if path.block1 == block]
            if not paths:
                continue
            rows = sum(2 * path.l3 + 1 for path in paths)
            tensor = torch.zeros(program.irreps_edge.dim, ir1.dim, rows, dtype=torch.float64)
            row = 0
            for path in paths:
                dim3 = 2 * path.l3 + 1
                tensor[program.irreps_edge.slices()[path.block2], :, row : row + dim3] = coupling(
                    path.l1, path.l2, path.l3
                ).transpose(0, 1)
                row += dim3
                total_mul = program.irreps_out[path.block3].mul
                start = out_slices[path.block3].start + path.channel3
                for m3 in range(dim3):
                    columns.append(start + m3 * total_mul + torch.arange(mul))
            index = len(self.groups)
            repeat = torch.tensor([p for p, path in enumerate(paths) for _ in range(2 * path.l3 + 1)])
            self.register_buffer(f"coupling_{index}", tensor.reshape(program.irreps_edge.dim, -1), persistent=False)
            self.register_buffer(f"path_of_row_{index}", repeat, persistent=False)
            weight_stop = weight_start + len(paths) * mul
            self.groups.append((program.irreps_in.slices()[block], ir1.dim, mul, slice(weight_start, weight_stop)))
            weight_start = weight_stop
        order = torch.argsort(torch.cat(columns)) if columns else torch.zeros(0, dtype=torch.int64)
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor, edge_attributes: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (N, irreps_in.dim) node features.
            edge_attributes: (E, irreps_edge.dim).
            weights: (E, weight_numel).
            edge_index: (2, E) destination and source of each edge.

        Returns:
            (N, irreps_out.dim).
        """
        destination, source = edge_index[0], edge_index[1]
        num_nodes, num_edges = x.shape[0], edge_attributes.shape[0]
        stacked = []
        for index, (block, dim1, mul, weight_slice) in enumerate(self.groups):
            folded = edge_attributes @ getattr(self, f"coupling_{index}").to(x.dtype)  # (E, dim1 * rows)
            x_edge = x[:, block].index_select(0, source).view(num_edges, dim1, mul)
            z = torch.bmm(folded.view(num_edges, dim1, -1).transpose(1, 2), x_edge)  # (E, rows, mul)
            w = weights[:, weight_slice].reshape(num_edges, -1, mul)
            z = z * w.index_select(1, getattr(self, f"path_of_row_{index}"))
            z = z.reshape(num_edges, -1)
            stacked.append(x.new_zeros(num_nodes, z.shape[1]).index_add(0, destination, z))
        if not stacked:
            return x.new_zeros(num_nodes, 0)
        return torch.cat(stacked, dim=1).index_select(1, self.order)
