"""Matrices with NaN are refused, whatever LAPACK says of them."""

import pytest
import torch
from fastlr.kernels.charge_solver import naive
from fastlr.kernels.charge_solver.constraints import Constraints
from fastlr.kernels.charge_solver.definite import positive_definite
from fastlr.kernels.charge_solver.op import equilibrate
from reference.coulomb_systems import CELL, MOLECULE, random_system

K = 14.399645478


@pytest.fixture
def as_openblas(monkeypatch):
    """A NaN passes the comparison of pivots with zero."""
    cholesky_ex = torch.linalg.cholesky_ex

    def factorise(matrix):
        factor, info = cholesky_ex(matrix)
        finite = matrix.isfinite().all(dim=-1).all(dim=-1)
        return torch.where(finite[:, None, None], factor, torch.nan), torch.where(finite, info, 0)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)


@pytest.mark.parametrize("way", ["naive", "constrained", "dense"])
@pytest.mark.usefixtures("as_openblas")
def test_nan_is_refused_by_name(way, rng):
    system = random_system(rng, [(3, MOLECULE), (4, CELL), (0, MOLECULE), (2, MOLECULE)])
    system = system._replace(squared_widths=system.squared_widths.clamp_min(0.1))
    chi, hardness = torch.randn(9).double(), torch.full((9,), 30.0).double()
    fragments = Constraints(torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4]), torch.zeros(5).double())
    function, options = {
        "naive": (naive.equilibrate, {}),
        "constrained": (naive.equilibrate, {"constraints": fragments}),
        "dense": (equilibrate, {"method": "dense"}),
    }[way]
    total = torch.zeros(4).double()
    assert function(system, chi, hardness, total, K, **options)[0].isfinite().all()
    hardness[5] = torch.nan
    with pytest.raises(naive.IndefiniteError, match=r"\[1\]"):
        function(system, chi, hardness, total, K, **options)


def test_empty_matrices_are_definite():
    assert positive_definite(*torch.linalg.cholesky_ex(torch.zeros(2, 0, 0))).tolist() == [True, True]
    assert positive_definite(*torch.linalg.cholesky_ex(torch.zeros(0, 3, 3))).shape == (0,)
