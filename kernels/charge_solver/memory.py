"""What the solutions of earlier steps tell about the next one's, in dynamics and relaxations."""

from collections import deque
from contextlib import contextmanager
from math import comb

import numpy as np
import torch
from torch import Tensor


class Memory:
    """Solutions of the last steps, extrapolated by the polynomial through them.

    A step is one equilibration of the same atoms, moved a little, and of its adjoint, and each has its own history. A
    solution of another length, of other atoms, clears it. Errors of solutions are amplified by at most 2^length.

    Args:
        length: solutions kept, and one more than the degree of the polynomial.

    Attributes:
        reports: of the last step, by (structure, number of the solve): 0 the charges, 1 the adjoint.
        totals: of the last step, by structure: total charge in e and d^2E/dQ^2 in eV/e^2, where that charge was found.
    """

    def __init__(self, length: int = 5):
        self.length, self.reports = length, {}
        self.totals: dict[int, tuple[float, float]] = {}
        self._is_same_step = False
        self._iterations: dict[int, int] = {}
        self._kept: dict[tuple[int, int], deque[Tensor]] = {}

    def guess(self, key: tuple[int, int], like: Tensor) -> Tensor | None:
        """Where the next solution may lie; None where nothing is known."""
        kept = self._kept.get(key)
        if not kept:
            return None
        if kept[0].shape != like.shape:
            self._kept.pop(key)
            return None
        if self._is_same_step:
            return kept[0].to(like.device)
        guess = len(kept) * kept[0]
        for k in range(1, len(kept)):
            guess.add_(kept[k], alpha=(-1) ** k * comb(len(kept), k + 1))
        return guess.to(like.device)

    def keep(self, key: tuple[int, int], solution: Tensor, report) -> None:
        """Remember the solution of this step; ``key`` is the structure and the number of the solve."""
        kept = self._kept.setdefault(key, deque(maxlen=self.length))
        if self._is_same_step and kept:
            kept.popleft()
        kept.appendleft(solution.detach())
        self.reports[key] = report
        self._iterations[key[1]] = self._iterations.get(key[1], 0) + report.iterations

    @contextmanager
    def same_step(self):
        """Solutions start from, and take the place of, the last ones: atoms have not moved since."""
        self._is_same_step = True
        try:
            yield
        finally:
            self._is_same_step = False

    def iterations(self, call: int) -> int:
        """Of all steps so far, in the solve of this number."""
        return self._iterations.get(call, 0)

    def begin(self) -> tuple[dict, dict]:
        """A step begins; returns what is known before it, for ``undo`` and ``state``."""
        self.reports.clear()
        return self._known()

    def undo(self, before: tuple[dict, dict]) -> None:
        """The step came to nothing: know what was known before it, and no more."""
        kept, totals = before
        self._kept = {key: deque(values, maxlen=self.length) for key, values in kept.items()}
        self.totals = dict(totals)

    def _known(self) -> tuple[dict, dict]:
        return {key: tuple(kept) for key, kept in self._kept.items()}, dict(self.totals)

    def state(self, before: tuple[dict, dict] | None = None) -> dict[str, np.ndarray]:
        """The solutions by name, (k, N) each, and found total charges, for ``restore``.

        Args:
            before: of a step, as ``begin`` told; default: as they are now.
        """
        kept, totals = self._known() if before is None else before
        state = {f"solution_{b}_{call}": torch.stack(values).cpu().numpy() for (b, call), values in kept.items()}
        return state | {f"total_{b}": np.array(known) for b, known in totals.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what ``state`` has told."""
        self.clear()
        for name, values in state.items():
            kind, *numbers = name.split("_")
            key = tuple(map(int, numbers))
            if kind == "total":
                self.totals[key[0]] = tuple(values.tolist())
            else:
                self._kept[key] = deque(torch.from_numpy(values.copy()).unbind(0), maxlen=self.length)

    def clear(self) -> None:
        """Forget all: atoms have changed places."""
        self._kept.clear()
        self.reports.clear()
        self.totals.clear()
