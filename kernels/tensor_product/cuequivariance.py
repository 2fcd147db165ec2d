"""The tensor-product convolution by NVIDIA's cuEquivariance.

On CUDA devices it runs their fused kernels; elsewhere cuEquivariance's own PyTorch evaluation serves.
"""

import torch
from torch import Tensor, nn

from ..adjacency import Adjacency
from .coupling import coupling
from .program import Program


class CuEquivarianceConvolution(nn.Module):
    """Same signature and results as ``NaiveConvolution``; the paths are handed over with our own coefficients."""

    def __init__(self, program: Program, method: str = "naive", math_dtype: torch.dtype = torch.float32):
        super().__init__()
        import cuequivariance as cue
        import cuequivariance_torch as cuet

        self.program = program
        product = cue.SegmentedTensorProduct.from_subscripts("u,iu,j,ku+ijk")
        for path in program.paths:
            product.add_segment(0, (path.mul,))
        for mul, ir in program.irreps_in:
            product.add_segment(1, (ir.dim, mul))
        for _, ir in program.irreps_edge:
            product.add_segment(2, (ir.dim,))
        # one output segment a path; paths into the same irrep are laid side by side afterwards
        columns = []
        out_slices = program.irreps_out.slices()
        for p, path in enumerate(program.paths):
            dim3 = 2 * path.l3 + 1
            product.add_segment(3, (dim3, path.mul))
            product.add_path(p, path.block1, path.block2, p, c=coupling(path.l1, path.l2, path.l3).numpy())
            start = out_slices[path.block3].start + path.channel3
            total_mul = program.irreps_out[path.block3].mul
            columns += [start + m3 * total_mul + torch.arange(path.mul) for m3 in range(dim3)]
        polynomial = cue.SegmentedPolynomial.eval_last_operand(product)
        if method != "naive":
            polynomial = polynomial.flatten_coefficient_modes().squeeze_modes()
        # in a tuple, for its constants are no part of a model's weights
        self._product = (cuet.SegmentedPolynomial(polynomial, method=method, math_dtype=math_dtype),)
        order = torch.argsort(torch.cat(columns)) if columns else torch.zeros(0, dtype=torch.int64)
        self.register_buffer("order", order, persistent=False)

    def _apply(self, *args, **kwargs) -> nn.Module:
        """Moves the product, too."""
        self._product[0]._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def forward(self, x: Tensor, edge_attributes: Tensor, weights: Tensor, edges: Adjacency) -> Tensor:
        """See ``NaiveConvolution.forward``."""
        destination, source = edges.destination, edges.source
        if not self.program.paths or edge_attributes.shape[0] == 0:
            return x.new_zeros(x.shape[0], self.program.irreps_out.dim)
        shape = x.new_zeros(x.shape[0], self.order.shape[0])  # tells cuEquivariance the number of output rows
        (z,) = self._product[0]([weights, x, edge_attributes], {1: source}, {0: shape}, {0: destination})
        return z.index_select(1, self.order)
