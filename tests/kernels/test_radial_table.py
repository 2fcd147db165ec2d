"""Interpolation from tables: the splines against smooth functions, and the kernels against the specification."""

from itertools import pairwise

import pytest
import torch
from fastlr.kernels.radial_table import naive, op
from fastlr.kernels.radial_table import sites as by_blocks
from fastlr.kernels.radial_table.intervals import Intervals
from fastlr.kernels.radial_table.naive import ROWS, site_weights, sites, spline_coefficients
from torch import library

from fastlr.nn.mlp import ScalarMLP
from fastlr.nn.radial import tabulated

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def place(device: str) -> str:
    return "cpu" if device == "interpreter" else device


def smooth(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.sin(3.0 * x), torch.exp(-x) * torch.cos(5.0 * x)], dim=1)


@pytest.mark.parametrize("num_intervals", [5, 8, 21])
def test_exact_for_polynomials_of_degree_five(num_intervals):
    powers = torch.arange(6, dtype=torch.float64)
    x = torch.rand(50, dtype=torch.float64) * num_intervals
    intervals = Intervals.from_positions(x, num_intervals)
    table = site_weights(num_intervals) @ (sites(num_intervals)[:, None] / num_intervals) ** powers
    values = naive.interpolate(spline_coefficients(x - intervals.interval), table, intervals.interval)
    assert torch.allclose(values, (x[:, None] / num_intervals) ** powers, rtol=0.0, atol=1e-11)


def test_error_falls_as_the_sixth_power():
    errors = []
    for num_intervals in (64, 128, 256):
        x = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000 * num_intervals
        intervals = Intervals.from_positions(x, num_intervals)
        table = site_weights(num_intervals) @ smooth(sites(num_intervals) * (4.0 / num_intervals))
        values = naive.interpolate(spline_coefficients(x - intervals.interval), table, intervals.interval)
        errors.append(float((values - smooth(x * (4.0 / num_intervals))).norm()))
    assert all(50.0 < coarse / fine < 80.0 for coarse, fine in pairwise(errors)), errors


@pytest.mark.parametrize("num_intervals", [5, 58, 59, 60, 64, 123, 124, 300])
def test_equations_solved_by_blocks(num_intervals):
    """The same as the inverse of the whole matrix, around full blocks; values of one column, of several, of none."""
    expected = site_weights(num_intervals)
    bound = 1e-14 * expected.abs().max()
    assert ((by_blocks.site_weights(num_intervals) - expected).abs() <= bound).all()
    for width in (0, 1, 3):
        values = torch.randn(num_intervals + 5, width).double()
        rows = by_blocks.rows_from_values(values)
        assert rows.shape == values.shape
        assert ((rows - expected @ values).abs() <= 1e-13 * (expected.abs() @ values.abs())).all()


def test_gradient_of_equations_solved_by_blocks():
    values = torch.randn(130, 2).double().requires_grad_(True)
    probe = torch.randn(130, 2).double()
    (gradient,) = torch.autograd.grad(by_blocks.rows_from_values(values), values, probe)
    expected = site_weights(125).T
    assert ((gradient - expected @ probe).abs() <= 1e-13 * (expected.abs() @ probe.abs())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_tables_that_are_kept_equal_those_that_learn(dtype):
    """Of a network; in float64 both are made from the same values."""
    network, roots = ScalarMLP([8, 16, 5]), torch.arange(1, 9).double()
    lengths = torch.tensor([0.5, 2.0, 4.5]).double()
    learns, kept = (tabulated(lengths, 100, 4.0, roots, 6.0, dtype, kept) for kept in (None, {}))
    assert learns.table(network).requires_grad
    assert not kept.table(network).requires_grad
    assert kept.table(network) is kept.table(network)
    expected = learns.table(network).detach()
    assert kept.table(network).dtype == dtype
    assert (kept.table(network) - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_splines_have_four_continuous_derivatives():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    table = torch.randn(ROWS + 1, dtype=torch.float64)
    right, left = spline_coefficients(ends)[0] @ table[1:], spline_coefficients(ends)[1] @ table[:-1]
    for _ in range(5):
        assert torch.allclose(left, right, rtol=0.0, atol=1e-10)
        left = torch.autograd.grad(left, ends, create_graph=True)[0][1]
        right = torch.autograd.grad(right, ends, create_graph=True)[0][0]
    assert not torch.allclose(left, right, rtol=0.0, atol=1e-3)


def test_intervals():
    intervals = Intervals.from_positions(torch.tensor([2.5, -0.1, 0.0, 3.0, 2.9], dtype=torch.float64), 3)
    assert intervals.interval.tolist() == [2, 0, 0, 2, 2]
    assert intervals.order.tolist() == [1, 2, 0, 3, 4]
    assert intervals.ptr.tolist() == [0, 2, 2, 5]


def problem(num_edges: int, num_intervals: int, width: int, dtype):
    """C, T, g and intervals; the last interval and one in the middle hold no edge."""
    positions = torch.rand(num_edges, dtype=torch.float64) * (num_intervals - 1)
    positions = torch.where(positions.floor() == num_intervals // 2, positions + 1.0, positions)
    intervals = Intervals.from_positions(positions, num_intervals)
    shapes = ((num_edges, ROWS), (num_intervals + ROWS - 1, width), (num_edges, width))
    return [torch.randn(*shape, dtype=dtype) for shape in shapes], intervals


def derivatives(function, tensors, probes) -> list[torch.Tensor]:
    """w, its gradients, and the gradients of probes of these."""
    coefficients, table, g = (tensor.clone().requires_grad_(True) for tensor in tensors)
    w = function(coefficients, table)
    first = torch.autograd.grad(w, (coefficients, table), g, create_graph=True)
    scalar = sum((value * probe).sum() for value, probe in zip(first, probes, strict=True))
    return [w, *first, *torch.autograd.grad(scalar, (coefficients, table, g))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("num_edges", "num_intervals", "width"), [(0, 6, 5), (1, 5, 1), (23, 7, 37), (40, 9, 100), (700, 16, 48)]
)
def test_kernels(num_edges, num_intervals, width, dtype, device):
    if device == "interpreter" and num_edges > 100:
        pytest.skip("the interpreter takes half a minute; smaller cases are tested in it")
    tensors, intervals = problem(num_edges, num_intervals, width, dtype)
    probes = [torch.randn_like(tensor) for tensor in tensors[:2]]
    there = [[tensor.to(place(device)) for tensor in group] for group in (tensors, probes)]
    moved = Intervals(*(tensor.to(place(device)) for tensor in intervals))
    values = derivatives(lambda c, t: op.values(c, t, list(moved)), *there)
    exact = [[tensor.double() for tensor in group] for group in (tensors, probes)]
    references = derivatives(lambda c, t: naive.interpolate(c, t, intervals.interval), *exact)
    for number, (value, reference) in enumerate(zip(values, references, strict=True)):
        assert value.dtype == dtype
        error = torch.linalg.vector_norm(value.cpu().double() - reference)
        assert error <= TOLERANCE[dtype] * torch.linalg.vector_norm(reference), number


def test_finite_differences():
    (coefficients, table, g), intervals = problem(7, 6, 5, torch.float64)
    leaves = [tensor.requires_grad_(True) for tensor in (coefficients, table, g)]
    assert torch.autograd.gradcheck(lambda c, t: op.values(c, t, list(intervals)), leaves[:2])
    assert torch.autograd.gradgradcheck(lambda c, t: op.values(c, t, list(intervals)), leaves[:2])


def test_same_bits_on_any_number_of_threads():
    (coefficients, table, g), intervals = problem(3000, 64, 203, torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        lists = list(intervals)
        results.append(
            [op.values(coefficients, table, lists), op.coefficients_gradient(g, table, lists),
             op.rows_gradient(coefficients, g, lists)]
        )  # fmt: skip
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_opcheck():
    (coefficients, table, g), intervals = problem(9, 6, 11, torch.float32)
    coefficients, table, g = (tensor.requires_grad_(True) for tensor in (coefficients, table, g))
    lists = list(intervals)
    library.opcheck(op.values.overload, (coefficients, table, lists))
    library.opcheck(op.coefficients_gradient.overload, (g, table, lists))
    library.opcheck(op.rows_gradient.overload, (coefficients, g, lists))


@pytest.mark.parametrize(
    ("coefficients", "table", "message"),
    [
        (torch.ones(9, 5), torch.ones(11, 3), r"coefficients: expected \(9, 6\)"),
        (torch.ones(9, 6), torch.ones(10, 3), r"table: expected \(11, F\)"),
        (torch.ones(9, 6), torch.ones(11, 3).double(), "of torch.float32, got"),
        (torch.ones(9, 6).half(), torch.ones(11, 3).half(), "for float32 and float64"),
    ],
)
def test_wrong_inputs(coefficients, table, message):
    _, intervals = problem(9, 6, 3, torch.float32)
    with pytest.raises(ValueError, match=message):
        op.values(coefficients, table, list(intervals))
