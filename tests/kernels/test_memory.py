"""Solutions of earlier steps as starts of the next: exact where they lie on a polynomial of the degree that is kept."""

import pytest
import torch
from fastlr.kernels.charge_solver.conjugate_gradient import Report
from fastlr.kernels.charge_solver.memory import Memory

KEY = (0, 0)


def remember(memory: Memory, solutions) -> None:
    for number, solution in enumerate(solutions):
        memory.keep(KEY, solution, Report(number, 0.0, 0.0))


def polynomial(degree: int, steps: int, n: int = 5) -> torch.Tensor:
    """(steps, n) values at 0, 1, 2, ..."""
    coefficients = torch.randn(degree + 1, n, dtype=torch.float64)
    times = torch.arange(steps, dtype=torch.float64)[:, None]
    return sum(coefficients[k] * times**k for k in range(degree + 1))


@pytest.mark.parametrize(("degree", "kept"), [(0, 1), (1, 2), (2, 3), (3, 4), (3, 9)])
def test_polynomials_are_continued(degree, kept):
    memory, values = Memory(), polynomial(degree, kept + 1)
    remember(memory, values[:-1])
    guess = memory.guess(KEY, values[0])
    assert torch.allclose(guess, values[-1], rtol=1e-12, atol=1e-10)


def test_a_guess_needs_enough_steps():
    memory, values = Memory(), polynomial(2, 3)
    assert memory.guess(KEY, values[0]) is None
    remember(memory, values[:2])
    assert not torch.allclose(memory.guess(KEY, values[0]), values[2], rtol=1e-3, atol=1e-3)


def test_solutions_of_other_atoms_are_forgotten():
    memory, values = Memory(), polynomial(1, 3)
    remember(memory, values[:2])
    assert memory.guess(KEY, torch.zeros(4, dtype=torch.float64)) is None
    assert memory.guess(KEY, values[0]) is None


def test_each_solve_has_its_own_history_and_count():
    memory, first, second = Memory(), *polynomial(0, 2)
    memory.keep((0, 0), first, Report(3, 0.0, 0.0))
    memory.keep((0, 1), second + 1.0, Report(2, 0.0, 0.0))
    memory.keep((0, 0), first, Report(4, 0.0, 0.0))
    assert torch.equal(memory.guess((0, 1), first), second + 1.0)
    assert (memory.iterations(0), memory.iterations(1), memory.iterations(2)) == (7, 2, 0)
    assert memory.reports[0, 0].iterations == 4


def test_goes_on_after_a_restart_with_the_same_bits():
    memory, other, values = Memory(), Memory(), polynomial(3, 4)
    remember(memory, values)
    other.restore(memory.state())
    assert torch.equal(other.guess(KEY, values[0]), memory.guess(KEY, values[0]))
    other.clear()
    assert other.guess(KEY, values[0]) is None
