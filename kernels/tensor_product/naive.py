"""The specification of the tensor-product convolution in plain PyTorch.

z[i, k, u] = sum_{e -> i} w[e, u] sum_{m1, m2} C[m1, m2, k] x[src(e), m1, u] Y[e, m2]        for every path
"""

import torch
from torch import Tensor, nn

from ..adjacency import Adjacency
from .coupling import coupling
from .program import Program


class NaiveConvolution(nn.Module):
    """Convolution of a ``Program`` with any number of autograd derivatives, for all devices and float types.

    Paths that share an input block are done together: C is contracted with Y first, one small matrix an edge,
    which then acts on all channels.
    """

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.groups = []  # (input block, multiplicity, 2 l3 + 1 of each path), for input blocks that have paths
        columns = []  # where each entry of the stacked groups goes in z
        out_slices = program.irreps_out.slices()
        for block, (mul, ir1) in enumerate(program.irreps_in):
            paths = [path for path in program.paths if path.block1 == block]
            if not paths:
                continue
            rows = []
            for path in paths:
                tensor = torch.zeros(program.irreps_edge.dim, ir1.dim, 2 * path.l3 + 1, dtype=torch.float64)
                tensor[program.irreps_edge.slices()[path.block2]] = coupling(path.l1, path.l2, path.l3).transpose(0, 1)
                rows.append(tensor)
                start = out_slices[path.block3].start + path.channel3
                total_mul = program.irreps_out[path.block3].mul
                columns += [start + m3 * total_mul + torch.arange(mul) for m3 in range(2 * path.l3 + 1)]
            self.register_buffer(f"coupling_{block}", torch.cat(rows, dim=2).flatten(1), persistent=False)
            self.groups.append((block, mul, [2 * path.l3 + 1 for path in paths]))
        order = torch.argsort(torch.cat(columns)) if columns else torch.zeros(0, dtype=torch.int64)
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor, edge_attributes: Tensor, weights: Tensor, edges: Adjacency) -> Tensor:
        """Convolve.

        Args:
            x: (N, irreps_in.dim) node features.
            edge_attributes: (E, irreps_edge.dim).
            weights: (E, weight_numel).
            edges: the graph.

        Returns:
            (N, irreps_out.dim).
        """
        destination, source = edges.destination, edges.source
        num_nodes, num_edges = x.shape[0], edge_attributes.shape[0]
        if not self.groups:
            return x.new_zeros(num_nodes, 0)
        blocks = x.split([mul * ir.dim for mul, ir in self.program.irreps_in], dim=1)
        weights = weights.split([mul * len(dims) for _, mul, dims in self.groups], dim=1)
        stacked = []
        for (block, mul, dims), w in zip(self.groups, weights, strict=True):
            dim1 = self.program.irreps_in[block].ir.dim  # spelled out below: with no edges, -1 would be ambiguous
            folded = edge_attributes @ getattr(self, f"coupling_{block}").to(x.dtype)  # (E, dim1 * rows)
            folded = folded.view(num_edges, dim1, sum(dims)).transpose(1, 2)
            x_edge = blocks[block].index_select(0, source).view(num_edges, dim1, mul)
            z = torch.bmm(folded, x_edge).split(dims, dim=1)  # a (E, 2 l3 + 1, mul) for each path
            w = w.view(num_edges, len(dims), 1, mul).unbind(1)
            z = torch.cat([z_path * w_path for z_path, w_path in zip(z, w, strict=True)], dim=1).flatten(1)
            stacked.append(x.new_zeros(num_nodes, z.shape[1]).index_add(0, destination, z))
        return torch.cat(stacked, dim=1).index_select(1, self.order)
