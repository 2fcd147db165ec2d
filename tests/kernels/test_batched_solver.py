"""Batched projected solves against dense solves of the bordered matrix, structure by structure."""

import numpy as np
import pytest
import torch
from fastlr.kernels import llvm, native
from fastlr.kernels.charge_solver import batched_cpu, batched_op, naive
from fastlr.kernels.charge_solver.batched_op import factorise, solve
from fastlr.kernels.charge_solver.naive import IndefiniteError
from fastlr.kernels.threads import run_parallel
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.coulomb import bordered_solve, molecule_matrix
from torch import library

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}


def place(device: str) -> str:
    return "cpu" if device == "interpreter" else device


def random_matrix(n: int, rng, floor: float = 0.3) -> np.ndarray:
    root = rng.standard_normal((n, n))
    return root @ root.T / max(n, 1) + floor * np.eye(n)


def molecule(n: int, rng, hardness: float) -> np.ndarray:
    """J plus the Coulomb matrix of Gaussian charges at random places as dense as in a liquid, eV/e^2."""
    positions = rng.random((n, 3)) * (n / 0.1) ** (1 / 3)
    return 14.4 * molecule_matrix(positions, 0.4 + 0.8 * rng.random(n)) + hardness * np.eye(n)


def batch(matrices: list[np.ndarray], rng, dtype=torch.float64, n: int | None = None, padding: float = np.nan):
    """H, sizes, rhs and total; what is to be ignored is ``padding``."""
    sizes = [len(matrix) for matrix in matrices]
    n = max(sizes, default=0) if n is None else n
    padded, rhs = np.full((len(matrices), n, n), padding), np.full((len(matrices), n), padding)
    for b, matrix in enumerate(matrices):
        padded[b, : sizes[b], : sizes[b]] = matrix
        rhs[b, : sizes[b]] = rng.standard_normal(sizes[b])
    total = rng.standard_normal(len(matrices))
    padded, rhs, total = (torch.as_tensor(array).to(dtype) for array in (padded, rhs, total))
    return padded, torch.tensor(sizes, dtype=torch.int64), rhs, total


def random_batch(sizes, rng, **options):
    return batch([random_matrix(n, rng) for n in sizes], rng, **options)


def solved(matrix, sizes, rhs, total):
    return solve(factorise(matrix, sizes), rhs, total)


def check(problem, charges, multiplier, tolerance: float) -> None:
    """q and mu in the norm of each structure; zeros in the padding."""
    matrix, sizes, rhs, total = (tensor.double().numpy() for tensor in problem)
    charges, multiplier = charges.double().cpu().numpy(), multiplier.double().cpu().numpy()
    for b, n in enumerate(sizes.astype(int)):
        q, mu = bordered_solve(matrix[b, :n, :n], -rhs[b, :n], total[b]) if n else (np.zeros(0), 0.0)
        found, exact = np.append(charges[b, :n], multiplier[b]), np.append(q, mu)
        for value, reference in ((found[:n], exact[:n]), (found, exact)):
            assert np.linalg.norm(value - reference) <= tolerance * np.linalg.norm(reference), (b, n)
        assert not charges[b, n:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "sizes",
    [[], [1], [3, 0, 1], [5, 2, 17, 4, 16, 8, 3, 1, 0, 2, 12], [64, 30], list(range(129)), [129, 130]],
    ids=["none", "one", "few", "mixed", "medium", "all", "large"],
)
def test_agrees_with_dense_solves(sizes, dtype, device, rng):
    if device == "interpreter" and len(sizes) > 100:
        pytest.skip("the interpreter takes a minute and a half; smaller batches are tested in it")
    if device != "cpu" and max(sizes, default=0) > 128:
        pytest.skip("the kernels for GPUs are for up to 128 atoms, which they refuse to exceed")
    problem = random_batch(sizes, rng, dtype=dtype)
    check(problem, *solved(*(tensor.to(place(device)) for tensor in problem)), TOLERANCE[dtype])


@pytest.mark.parametrize("hardness", [0.005, 0.05, 0.3, 2.0])
def test_coulomb_matrices(hardness, device, rng):
    sizes = [7, 20] if device == "interpreter" else [1, 2, 9, 20, 33, 48, 90, 128]
    problem = batch([molecule(n, rng, hardness) for n in sizes], rng)
    charges, multiplier = solved(*(tensor.to(place(device)) for tensor in problem))
    check(problem, charges, multiplier, TOLERANCE[torch.float64])
    error = (charges.sum(dim=1).cpu() - problem[3]).abs()  # of the total charge: rounding alone
    assert (error <= 3e-15 * charges.abs().sum(dim=1).cpu()).all()


def test_largest_structure_of_a_gpu(device, rng):
    problem = batch([molecule(n, rng, 8.0) for n in (3, 128)], rng)
    check(problem, *solved(*(tensor.to(place(device)) for tensor in problem)), TOLERANCE[torch.float64])


@pytest.mark.parametrize("count", [1, 3, 17, 1000])
def test_agrees_with_the_specification(count, rng):
    matrix, sizes, rhs, total = random_batch(rng.integers(1, 21, count), rng, padding=0.0)
    mask = torch.arange(matrix.shape[1])[None, :] < sizes[:, None]
    for value, reference in zip(
        solved(matrix, sizes, rhs, total), naive.solve_charges(matrix, rhs, total, mask), strict=True
    ):
        assert torch.allclose(value, reference, rtol=1e-10, atol=1e-12)


def test_padding_is_ignored(device, rng):
    """Bit by bit, and beyond the largest structure, too."""
    sizes = [5, 2, 9, 1]
    results = []
    for padding in (0.0, np.nan, -3.0):
        problem = random_batch(sizes, np.random.default_rng(1), n=11, padding=padding)
        results.append(solved(*(tensor.to(place(device)) for tensor in problem)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_constant_electronegativities_move_no_charge(device):
    matrix = torch.eye(6, dtype=torch.float64, device=place(device)).expand(3, 6, 6) + 1.0
    sizes = torch.tensor([6, 4, 1], device=place(device))
    rhs, total = matrix.new_full((3, 6), 7.0), matrix.new_zeros(3)
    charges, multiplier = solved(matrix, sizes, rhs, total)
    assert float(charges.abs().max()) < 1e-13
    assert torch.allclose(multiplier, torch.full_like(multiplier, 7.0), rtol=1e-13)


def test_no_atoms(device):
    """Neither a potential nor charges, whatever their sum should be."""
    for n in (0, 2):
        matrix = torch.full((2, n, n), np.nan, dtype=torch.float64, device=place(device))
        sizes = torch.zeros(2, dtype=torch.int64, device=place(device))
        charges, multiplier = solved(matrix, sizes, matrix.new_ones(2, n), matrix.new_tensor([0.0, 1.0]))
        assert charges.shape == (2, n)
        assert not charges.any()
        assert multiplier.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("fault", [-1.0, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("element", [(0, 0), (3, 3), (3, 1)], ids=str)
def test_faulty_matrices_are_named(fault, element, device, rng):
    matrix, sizes, *_ = random_batch([3, 4, 2, 4, 5, 4, 4, 4, 4, 6], rng)
    for b in (1, 8):
        if np.isfinite(fault):  # one small off-diagonal element would not do
            matrix[b, element[0], element[0]] = fault
        else:
            matrix[b, element[0], element[1]] = matrix[b, element[1], element[0]] = fault
    with pytest.raises(IndefiniteError, match=r"\[1, 8\]") as caught:
        factorise(matrix.to(place(device)), sizes.to(place(device)))
    assert caught.value.structures == [1, 8]


@pytest.mark.parametrize("n", [5, 13, 70])
def test_one_negative_eigenvalue_is_enough(n, device, rng):
    """Among all charges on CPUs, among those of sum zero where the solver iterates."""
    problem = matrix, *_ = random_batch([n, n, n], rng)
    vector = rng.standard_normal(n)
    vector = torch.as_tensor((vector - vector.mean()) / np.linalg.norm(vector - vector.mean()))
    inverse = torch.linalg.inv(matrix[1])
    if device != "cpu":
        inverse -= torch.outer(inverse.sum(0), inverse.sum(0)) / inverse.sum()
    change = torch.outer(vector, vector) / (vector @ inverse @ vector)
    matrix[1] -= 0.99 * change
    assert all(tensor.isfinite().all() for tensor in solved(*(tensor.to(place(device)) for tensor in problem)))
    matrix[1] -= 0.02 * change
    with pytest.raises(IndefiniteError, match=r"\[1\]"):
        solved(*(tensor.to(place(device)) for tensor in problem))


def triton_kernels(device: str):
    if device == "cpu":
        pytest.skip("nothing to report: CPUs factorise where GPUs iterate")
    return pytest.importorskip("fastlr.kernels.charge_solver.batched_triton")


def test_iteration_is_reported(device, rng):
    kernels = triton_kernels(device)
    matrix, sizes, rhs, total = (tensor.to(place(device)) for tensor in random_batch([6, 1, 20], rng))
    charges, multiplier, steps, norm = kernels.conjugate_gradient(factorise(matrix, sizes), rhs, total)
    assert steps.dtype == torch.int32
    assert steps[1] == 0
    assert all(3 <= int(steps[b]) <= 2 * int(sizes[b]) for b in (0, 2))
    for b, n in enumerate(sizes.tolist()):
        residual = rhs[b, :n] - matrix[b, :n, :n] @ charges[b, :n] - multiplier[b]
        assert float(residual.norm()) == pytest.approx(float(norm[b]), abs=1e-14)
        assert float(norm[b]) < 1e-11


def test_unconverged_charges_are_refused(device, rng, monkeypatch):
    kernels = triton_kernels(device)
    monkeypatch.setattr(kernels, "STEPS_AN_ATOM", 0)
    matrix, sizes, rhs, total = (tensor.to(place(device)) for tensor in random_batch([6, 1, 9], rng))
    factor = factorise(matrix, sizes)
    with pytest.raises(IndefiniteError, match=r"\[0, 2\]"):
        solve(factor, rhs, total)
    charges, multiplier, steps, _ = kernels.conjugate_gradient(factor, rhs, total)
    assert steps.tolist() == [-1, 0, -1]
    assert multiplier.isfinite().tolist() == [False, True, False]
    assert charges[0].isnan().all()


@pytest.mark.parametrize("derivatives", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives(derivatives, device, rng):
    sizes = [2] if device == "interpreter" else [3, 1, 4, 0]
    matrix, sizes, rhs, total = (tensor.to(place(device)) for tensor in random_batch(sizes, rng, padding=0.0))
    factor = factorise(matrix, sizes)
    leaves = [rhs.requires_grad_(True), total.requires_grad_(True)]
    # a nonlinear function of the results, or else second derivatives would all be zero
    assert derivatives(lambda *inputs: [x**2 + x for x in solve(factor, *inputs)], leaves)


def test_matrices_that_ask_for_gradients_get_none(rng):
    matrix, sizes, rhs, total = random_batch([3, 2], rng, padding=0.0)
    charges, _ = solved(matrix.requires_grad_(True), sizes, rhs.requires_grad_(True), total)
    charges.sum().backward()
    assert matrix.grad is None


@pytest.mark.usefixtures("many_cores")
def test_same_bits_on_any_number_of_threads_and_in_any_company(rng, monkeypatch):
    matrix, sizes, rhs, total = random_batch(rng.integers(1, 40, 700), rng)
    results, shares = [], []

    def run(kernel, pointer, bounds):
        shares.append(len(bounds) - 1)
        run_parallel(kernel, pointer, bounds)

    monkeypatch.setattr(native, "run_parallel", run)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(solved(matrix, sizes, rhs, total))
    torch.set_num_threads(1)
    assert shares == [2, 2, 3, 3]
    some = torch.tensor([3, 600, 41])
    alone = solved(matrix[some], sizes[some], rhs[some], total[some])
    for k in range(2):
        assert all(torch.equal(result[k], results[0][k]) for result in results[1:])
        assert torch.equal(alone[k], results[0][k][some])


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_vectors_of_other_processors(width, dtype, rng, monkeypatch):
    for module in (llvm, batched_cpu):
        monkeypatch.setattr(module, "vector_bytes", lambda: width)
    problem = random_batch([5, 2, 17, 4, 16, 8, 3, 1, 0, 2, 12, 33, 9, 10, 11, 6, 7], rng, dtype=dtype)
    check(problem, *solved(*problem), TOLERANCE[dtype])


@given(st.lists(st.integers(0, 24), max_size=20), st.floats(1e-3, 10.0), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_residual_is_small(sizes, floor, seed):
    """Of the equations themselves, for any sizes and matrices."""
    rng = np.random.default_rng(seed)
    matrix, sizes, rhs, total = batch([random_matrix(n, rng, floor) for n in sizes], rng)
    charges, multiplier = solved(matrix, sizes, rhs, total)
    for b, n in enumerate(sizes.tolist()):
        h, q = matrix[b, :n, :n], charges[b, :n]
        scale = float(h.norm() * q.norm() + rhs[b, :n].norm()) + 1e-300
        assert float((h @ q + multiplier[b] - rhs[b, :n]).norm()) <= 1e-13 * scale
        assert n == 0 or abs(float(q.sum() - total[b])) <= 1e-13 * (float(q.abs().sum()) + 1.0)


def test_opcheck(rng):
    matrix, sizes, rhs, total = random_batch([3, 1, 6], rng, padding=0.0)
    # the factor has padding that nothing is written to: opcheck compares what it holds
    library.opcheck(
        batched_op.charge_factorise.overload,
        (matrix, sizes),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    factor = list(factorise(matrix, sizes))
    library.opcheck(batched_op.charge_solve.overload, (factor, rhs.requires_grad_(True), total.requires_grad_(True)))


def test_compiled_without_graph_breaks(rng):
    matrix, sizes, rhs, total = random_batch([3, 1, 6], rng, padding=0.0)
    compiled = torch.compile(lambda *inputs: solved(*inputs), fullgraph=True, backend="aot_eager", dynamic=True)
    for value, reference in zip(compiled(matrix, sizes, rhs, total), solved(matrix, sizes, rhs, total), strict=True):
        assert torch.equal(value, reference)


@pytest.mark.parametrize(
    ("matrix", "sizes", "message"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, dtype=torch.int64), r"matrix: expected \(2, 4, 4\)"),
        (torch.ones(2, 3, 3).half(), torch.ones(2, dtype=torch.int64), "for float32 and float64"),
        (torch.ones(2, 3, 3), torch.ones(2), "sizes: expected .* of torch.int64"),
        (torch.ones(2, 3, 3), torch.tensor([1, 4]), r"sizes: expected 0 \.\.\. 3, got 1 \.\.\. 4"),
        (torch.ones(2, 3, 3), torch.tensor([-1, 3]), r"sizes: expected 0 \.\.\. 3, got -1 \.\.\. 3"),
    ],
)
def test_wrong_matrices(matrix, sizes, message):
    with pytest.raises(ValueError, match=message):
        factorise(matrix, sizes)


def test_wrong_right_hand_sides(device, rng):
    matrix, sizes, rhs, total = (tensor.to(place(device)) for tensor in random_batch([6, 5], rng))
    factor = factorise(matrix, sizes)
    for wrong in (rhs[:, :5], rhs[:, :4], rhs[:1], rhs.float(), torch.cat([rhs, rhs], dim=1)):
        with pytest.raises(ValueError, match="rhs: "):
            solve(factor, wrong, total)
    with pytest.raises(ValueError, match="total: expected"):
        solve(factor, rhs, total[:1])


def test_too_large_for_a_gpu(device):
    triton_kernels(device)
    with pytest.raises(ValueError, match="up to 128 atoms"):
        factorise(torch.eye(129, device=place(device))[None], torch.tensor([129], device=place(device)))
