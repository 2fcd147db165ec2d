"""What the solutions of earlier steps tell about the next one's, in dynamics and relaxations."""

from collections import deque
from collections.abc import Hashable
from math import comb

from torch import Tensor


class Memory:
    """Solutions of the last steps, extrapolated by the polynomial through them.

    A step is one equilibration of the same atoms, moved a little, and of its adjoint, and each has its own history. A
    solution of another length, of other atoms, clears it. Errors of solutions are amplified by at most 2^length.

    Args:
        length: solutions kept, and one more than the degree of the polynomial.

    Attributes:
        reports: of the last step, by (structure, number of the solve): 0 the charges, 1 the adjoint.
    """

    def __init__(self, length: int = 4):
        self.length, self.reports = length, {}
        self._kept: dict[Hashable, deque[Tensor]] = {}

    def guess(self, key: Hashable, like: Tensor) -> Tensor | None:
        """Where the next solution may lie; None where nothing is known."""
        kept = self._kept.get(key)
        if not kept:
            return None
        if kept[0].shape != like.shape or kept[0].device != like.device:
            self._kept.pop(key)
            return None
        n = len(kept)
        return sum((-1) ** k * comb(n, k + 1) * q for k, q in enumerate(kept))

    def keep(self, key: Hashable, solution: Tensor, report) -> None:
        """Remember the solution of this step."""
        self._kept.setdefault(key, deque(maxlen=self.length)).appendleft(solution.detach())
        self.reports[key] = report

    def clear(self) -> None:
        """Forget all: atoms have changed places."""
        self._kept.clear()
        self.reports.clear()
