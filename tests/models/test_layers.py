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
from fastlr.nn.linear import NodeAttributes, SelfConnection
from fastlr.nn.radial import EveryEdge


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
    x, attributes = torch.randn(4, irreps.dim).double(), NodeAttributes(torch.randn(2, 2).double(), torch.arange(4) % 2)
    angular, radial = torch.randn(9, edge.dim).double(), EveryEdge(torch.randn(9, 4).double())
    edges, norm = Adjacency.from_edges(torch.randint(4, (2, 9)), 4), torch.ones(1, 1).double()
    rotation = random_rotation(improper)
    z = layer(x, attributes, angular, radial, edges, norm)
    rotated = (transform(x, irreps, rotation), attributes, transform(angular, edge, rotation), radial)
    assert relative_error(layer(*rotated, edges, norm), transform(z, irreps, rotation)) < 1e-12


@torch.no_grad()
def test_self_connection_is_a_fully_connected_product():
    """Both ways to contract it, with attributes of the species and of the atoms, against the sum written out."""
    irreps_in, irreps_out = Irreps("3x0e+2x1o"), Irreps("4x0e+1x1o")
    species, own = torch.tensor([0, 2, 1, 1, 2]), torch.randn(5, 2).double()
    for num_species in (3, 9):  # fewer and more than the attributes
        layer = SelfConnection(irreps_in, 6, irreps_out).double()
        attributes = NodeAttributes(torch.randn(num_species, 4).double(), species, own)
        x = torch.randn(5, irreps_in.dim).double()
        scalars = torch.einsum("nu,nv,uvw->nw", x[:, :3], attributes.dense(), layer.weights["0e"]) / 18**0.5
        vectors = torch.einsum("nku,nv,uvw->nkw", x[:, 3:].view(5, 3, 2), attributes.dense(), layer.weights["1o"])
        expected = torch.cat([scalars, vectors.flatten(1) / 12**0.5], dim=1)
        assert relative_error(layer(x, attributes), expected) < 1e-14
