"""Learning rate: a linear warm-up times a constant, a cosine, or steps down on plateaus of the validation loss."""

import math

from .config import TrainingConfig


class Schedule:
    """The learning rate at any moment of a run; ``state`` is what a checkpoint must keep."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.state = {"factor": 1.0, "best": math.inf, "waited": 0}

    def rate(self, step: int, progress: float) -> float:
        """Learning rate.

        Args:
            step: optimizer steps done.
            progress: done fraction of the run, 0 to 1.
        """
        config = self.config
        factor = self.state["factor"]
        if config.schedule == "cosine":
            low = config.final_learning_rate
            factor = low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
        return config.learning_rate * factor * warmup

    def validated(self, loss: float) -> None:
        """Take note of a validation loss; lower the rate if none was better for ``plateau_patience`` epochs."""
        if loss < self.state["best"]:
            self.state.update(best=loss, waited=0)
            return
        self.state["waited"] += 1
        if self.config.schedule == "plateau" and self.state["waited"] >= self.config.plateau_patience:
            lower = max(self.state["factor"] * self.config.plateau_factor, self.config.final_learning_rate)
            self.state.update(factor=lower, waited=0)
