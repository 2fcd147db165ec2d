"""The two targets of the generated kernels."""

from importlib.util import find_spec

import pytest
import torch
from fastlr.kernels.charge_solver import batched_op
from fastlr.kernels.edge_basis import op as edge_basis
from fastlr.kernels.ewald import op as ewald
from fastlr.kernels.ewald_mesh import op as ewald_mesh
from fastlr.kernels.gate import op as gate
from fastlr.kernels.irreps_linear import op as irreps_linear
from fastlr.kernels.radial_table import op as radial_table
from fastlr.kernels.tabulated_product import op as tabulated_product
from fastlr.kernels.tensor_product import op as tensor_product


@pytest.fixture(params=["cpu", "triton"])
def device(request, monkeypatch):
    """The device of each target in turn; without a GPU Triton's interpreter stands in for it, on CPU tensors."""
    if request.param == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    for op in (edge_basis, ewald, ewald_mesh, gate, irreps_linear, radial_table, tabulated_product, tensor_product):
        monkeypatch.setitem(op._KERNELS, "cpu", ".triton")
    monkeypatch.setitem(batched_op._KERNELS, "cpu", ".batched_triton")
    return "interpreter"
