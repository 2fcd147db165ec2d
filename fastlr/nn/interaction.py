"""One NequIP message-passing layer: linear, convolution, linear, self-connection, gate."""

import torch
from torch import Tensor, nn

from fastlr.backends import Operations
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.irreps import Irreps
from fastlr.kernels.tensor_product.program import Program

from .gate import Gate
from .linear import Linear, NodeAttributes, SelfConnection, unique_irreps
from .mlp import ScalarMLP
from .radial import EveryEdge, Tabulated


class InteractionLayer(nn.Module):
    """Batzner et al., Nat. Commun. 13, 2453 (2022), with the conventions of the ``nequip`` package.

    Args:
        irreps_in: node features coming in.
        irreps_edge: spherical harmonics of the edges.
        irreps_hidden: features wanted; those that no path can reach are left out (see ``irreps_out``).
        num_attributes: number of scalar node attributes, for the self-connection.
        radial_dims: widths of the radial network from the Bessel functions to its last hidden layer.
        self_connection: whether the layer has one (NequIP's first layer has none).
        operations: the kernels in use.
    """

    def __init__(
        self,
        irreps_in,
        irreps_edge,
        irreps_hidden,
        num_attributes: int,
        radial_dims: list[int],
        self_connection: bool,
        operations: Operations,
    ):
        super().__init__()
        self.irreps_in = unique_irreps(irreps_in)
        irreps_edge = Irreps(irreps_edge)
        reachable = {ir for _, ir1 in self.irreps_in for _, ir2 in irreps_edge for ir in ir1 * ir2}
        self.gate = Gate(Irreps([(mul, ir) for mul, ir in Irreps(irreps_hidden) if ir in reachable]), operations)
        self.irreps_out = self.gate.irreps_out
        self.program = Program(self.irreps_in, irreps_edge, self.gate.irreps_in)
        self.linear_1 = Linear(self.irreps_in, self.irreps_in, operations)
        self.radial_network = ScalarMLP([*radial_dims, self.program.weight_numel])
        self.use(operations)
        self.linear_2 = Linear(self.program.irreps_out, self.gate.irreps_in, operations)
        self.self_connection = (
            SelfConnection(self.irreps_in, num_attributes, self.gate.irreps_in, operations) if self_connection else None
        )

    def forward(
        self,
        x: Tensor,
        attributes: NodeAttributes,
        angular: Tensor,
        radial: EveryEdge | Tabulated,
        edges: Adjacency,
        norm: Tensor,
    ) -> Tensor:
        """One layer.

        Args:
            x: (N, irreps_in.dim) node features.
            attributes: of the atoms.
            angular: (E, irreps_edge.dim).
            radial: where the radial network is evaluated.
            edges: the graph.
            norm: (N, 1) or (1, 1), 1 / sqrt(average number of neighbours) of the source atoms.
        """
        h = self.linear_1(x) * norm
        if isinstance(radial, Tabulated):
            table = radial.table(self.radial_network)
            z = self.tabulated_convolution(h, angular, radial.coefficients, table, radial.interval, edges)
        else:
            z = self.convolution(h, angular, self.radial_network(radial.basis), edges)
        z = self.linear_2(z)
        if self.self_connection is not None:
            z = z + self.self_connection(x, attributes)
        return self.gate(z)

    @torch.no_grad()
    def use(self, operations: Operations) -> None:
        """Replace the kernels."""
        self.convolution = operations.tensor_product(self.program)
        self.tabulated_convolution = operations.tabulated_product(self.program)
