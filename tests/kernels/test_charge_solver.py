"""Charge equilibration's linear algebra against numpy's dense solve of the bordered matrix."""

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver.naive import IndefiniteError, solve_charges
from reference.coulomb import bordered_solve
from reference.differences import relative_error


def random_problem(sizes, seed: int = 0, floor: float = 0.3):
    """A batch padded to the largest size; what stands outside the mask is garbage where it may be."""
    generator = torch.Generator().manual_seed(seed)
    n = max(sizes)
    mask = torch.arange(n)[None, :] < torch.tensor(sizes)[:, None]
    root = torch.randn(len(sizes), n, n, generator=generator, dtype=torch.float64)
    matrix = root @ root.transpose(1, 2) / n + floor * torch.eye(n, dtype=torch.float64)
    rhs = torch.randn(len(sizes), n, generator=generator, dtype=torch.float64) * mask
    total = torch.randn(len(sizes), generator=generator, dtype=torch.float64)
    return matrix, rhs, total, mask


@pytest.mark.parametrize("sizes", [[1], [7], [3, 1, 6], [5, 5], [23]], ids=str)
def test_agrees_with_bordered_solve(sizes):
    matrix, rhs, total, mask = random_problem(sizes)
    charges, multiplier = solve_charges(matrix, rhs, total, mask)
    for b, n in enumerate(sizes):
        q, mu = bordered_solve(matrix[b, :n, :n].numpy(), -rhs[b, :n].numpy(), float(total[b]))
        assert relative_error(charges[b, :n], q) < 1e-11
        assert float(multiplier[b]) == pytest.approx(mu, rel=1e-10)
        assert not charges[b, n:].any()
        assert abs(float(charges[b].sum() - total[b])) < 1e-12


def test_total_charge_is_exact_when_ill_conditioned():
    matrix, rhs, total, mask = random_problem([40], floor=1e-4)
    charges, _ = solve_charges(matrix, rhs, total, mask)
    # rounding grows with the condition number; a soft model's charges may be large, their sum must still be right
    assert float(charges.abs().max()) > 10.0
    assert abs(float(charges.sum() - total)) < 1e-10


def test_is_the_minimum():
    """No move that keeps the total charge lowers the energy."""
    matrix, rhs, total, mask = random_problem([6])
    charges, _ = solve_charges(matrix, rhs, total, mask)

    def energy(q):
        return float(0.5 * q @ matrix[0] @ q - rhs[0] @ q)

    for _ in range(20):
        step = torch.randn(6, dtype=torch.float64)
        assert energy(charges[0] + 1e-3 * (step - step.mean())) > energy(charges[0])


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("sizes", [[3], [1, 3]], ids=str)
def test_derivatives(check, sizes):
    matrix, rhs, total, mask = random_problem(sizes)

    def function(matrix, rhs, total):
        return solve_charges(0.5 * (matrix + matrix.transpose(1, 2)), rhs * mask, total, mask)

    assert check(function, [x.requires_grad_(True) for x in (matrix, rhs, total)])


def test_masked_entries_get_no_gradient():
    matrix, rhs, total, mask = random_problem([2, 4])
    leaves = [x.requires_grad_(True) for x in (matrix, rhs, total)]
    charges, _ = solve_charges(*leaves, mask)
    matrix_grad, rhs_grad, _ = torch.autograd.grad((charges**2).sum(), leaves)
    assert matrix_grad[0, :2, :2].all()
    assert not matrix_grad[0, 2:].any()
    assert not matrix_grad[0, :, 2:].any()
    assert not rhs_grad[0, 2:].any()


@pytest.mark.parametrize("fault", ["negative", "nan"])
def test_indefinite_matrix_names_the_structures(fault):
    matrix, rhs, total, mask = random_problem([3, 4, 2, 4])
    for b in (1, 2):
        matrix[b, 1, 1] = -1.0 if fault == "negative" else np.nan
    with pytest.raises(IndefiniteError, match=r"\[1, 2\]") as caught:
        solve_charges(matrix, rhs, total, mask)
    assert caught.value.structures == [1, 2]


def test_garbage_outside_the_mask_is_ignored():
    matrix, rhs, total, mask = random_problem([2, 5])
    spoilt = matrix.clone()
    spoilt[0, 2:, :] = np.nan
    spoilt[0, :, 2:] = -7.0
    for value, reference in zip(
        solve_charges(spoilt, rhs, total, mask), solve_charges(matrix, rhs, total, mask), strict=True
    ):
        assert torch.equal(value, reference)
