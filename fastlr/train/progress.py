"""What the user sees: a bar in a terminal, and one line an epoch everywhere."""

import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SHORT = {"energy": "E", "forces": "F", "stress": "S", "charges": "q", "dipole": "D"}


class Progress:
    """Progress of a run on ``console``; silent without one."""

    def __init__(self, console: Console | None, max_epochs: int):
        self.console, self.max_epochs = console, max_epochs
        self.bars = None
        if console is not None and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bars = Bars(*columns, console=console, transient=True)
        self.task = None

    def __enter__(self):
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_):
        if self.bars:
            self.bars.stop()

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line on the console, or a warning of Python's: never silent."""
        if self.console is None:
            warnings.warn(text, stacklevel=3)
        else:
            self.say(f"warning: {text}")

    def start(self, description: str, total: int) -> None:
        """Begin a new bar in place of the last one."""
        if self.bars:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task = self.bars.add_task(description, total=total)

    def advance(self) -> None:
        if self.bars and self.task is not None:
            self.bars.advance(self.task)

    def start_epoch(self, epoch: int, num_batches: int) -> None:
        self.start(f"epoch {epoch}/{self.max_epochs}", num_batches)

    def finish_epoch(self, row: dict, errors: dict, better: bool) -> None:
        parts = [f"{SHORT[name]} {values['mae']:.4g} {values['unit']}" for name, values in errors.items()]
        self.say(
            f"epoch {row['epoch']:>4}/{self.max_epochs}  loss {row['train_loss']:.3e}  validation "
            f"{row['validation_loss']:.3e}{'*' if better else ' '} MAE: {', '.join(parts)}  "
            f"lr {row['learning_rate']:.1e}  {row['seconds']:.0f} s"
        )
