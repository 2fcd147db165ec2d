"""One interaction layer alone, with every irrep that deep stacks reach but small models do not."""

import pytest
import torch
from e3nn.o3 import Irreps
from fastlr.kernels.adjacency import Adjacency
from reference.differences import relative_error
from reference.rotations import random_rotation, representation

from fastlr.backends import resolve
from fastlr.models.nequip import cast
from fastlr.nn.interaction import InteractionLayer


def transform(values, irreps, rotation):
    blocks = [
        torch.einsum("ij,nju->niu", representation(ir, rotation), values[:, block].reshape(-1, ir.dim, mul)).flatten(1)
        for block, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    ]
    return torch.cat(blocks, dim=1)


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])
@torch.no_grad()
def test_layer_is_equivariant(improper):
    """Odd scalars too: their activation must be odd."""
    irreps = Irreps("3x0e+2x0o+2x1o+3x1e+1x2e+2x2o")
    edge = Irreps("0e+1o+2e")
    layer = InteractionLayer(irreps, edge, irreps, 2, [4, 5], True, resolve("reference", dtype=torch.float64))
    cast(layer, torch.float64)
    assert layer.irreps_out == irreps
    x, attributes = torch.randn(4, irreps.dim).double(), torch.randn(4, 2).double()
    angular, radial = torch.randn(9, edge.dim).double(), torch.randn(9, 4).double()
    edges, norm = Adjacency.from_edges(torch.randint(4, (2, 9)), 4), torch.ones(1, 1).double()
    rotation = random_rotation(improper)
    z = layer(x, attributes, angular, radial, edges, norm)
    rotated = (transform(x, irreps, rotation), attributes, transform(angular, edge, rotation), radial)
    assert relative_error(layer(*rotated, edges, norm), transform(z, irreps, rotation)) < 1e-12
