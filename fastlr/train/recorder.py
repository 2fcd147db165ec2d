"""After each epoch: a line of metrics, checkpoints, the exported model, and whether to go on."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl

from fastlr.errors import NonFiniteError
from fastlr.kernels.files import replacing

from .config import TrainConfig, TrainingConfig
from .history import append_row, keep_rows
from .plots import plot_learning_curve
from .process import writing
from .progress import Progress

DRAW_EVERY = 60.0  # seconds between two drawings of the learning curve


class Recorder(pl.Callback):
    """Writes what the output directory holds while training runs.

    Args:
        output: output directory.
        config: of the run.
        progress: what the user sees.
        export: writes model.safetensors given the averaged model, the epoch and its validation errors.
    """

    def __init__(self, output: Path, config: TrainConfig, progress: Progress, export: Callable):
        self.output, self.config, self.progress, self.export = output, config, progress, export
        self.state = {"elapsed": 0.0, "seconds": 0.0, "epochs": 0, "best": math.inf, "best_epoch": 0}
        self.saved = self.exported = 0  # epochs of last.ckpt and of model.safetensors
        self.drawn = 0.0

    # Lightning keeps this in its checkpoints
    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state_dict):
        self.state = dict(state_dict)
        self.saved, self.exported = self.state["epochs"], self.state["best_epoch"]

    def on_train_start(self, trainer, module):
        if trainer.is_global_zero:
            keep_rows(self.output / "metrics.csv", trainer.current_epoch)

    def on_train_epoch_start(self, trainer, module):
        self.started = time.perf_counter()
        limit = self.config.training.max_time
        module.time_progress = self.state["elapsed"] / limit if limit else 0.0
        self.progress.start_epoch(trainer.current_epoch + 1, trainer.num_training_batches)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.progress.advance()

    def on_train_epoch_end(self, trainer, module):
        training, state = self.config.training, self.state
        loss = module.errors.total_loss()
        epoch = trainer.current_epoch + 1
        if not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss is {loss} after epoch {epoch}; lower training.learning_rate")
        module.schedule.validated(loss)
        better = loss < state["best"]
        if better:
            state.update(best=loss, best_epoch=epoch)
        seconds = time.perf_counter() - self.started
        state.update(elapsed=state["elapsed"] + seconds, seconds=seconds, epochs=epoch)
        trainer.should_stop = bool(why_over(state, training))

        with writing(self.output):
            self._write(trainer, module, loss, better)

    def _write(self, trainer, module, loss: float, better: bool):
        errors, state, epoch = module.errors.table(), self.state, self.state["epochs"]
        if trainer.is_global_zero:
            row = {
                "epoch": epoch,
                "step": trainer.global_step,
                "learning_rate": module.learning_rate,
                "train_loss": float(module.loss_sum) / max(module.num_steps, 1),
                "validation_loss": loss,
                "seconds": state["elapsed"],
            }
            for name, values in errors.items():
                for kind in ("mae", "rmse"):
                    row[f"{name}_{kind} ({values['unit']})"] = values[kind]
            append_row(self.output / "metrics.csv", row)
            if better:
                self.export(module.ema.model, epoch, errors)
                self.exported = epoch
            self.progress.finish_epoch(row, errors, better)
        if better:
            save_checkpoint(trainer, self.output / "best.ckpt")
        save_checkpoint(trainer, self.output / "last.ckpt")
        self.saved = epoch
        if trainer.is_global_zero and state["elapsed"] - self.drawn > DRAW_EVERY:
            self.drawn = state["elapsed"]
            plot_learning_curve(self.output / "metrics.csv", self.output / "learning_curve.png")


def why_over(state: dict, training: TrainingConfig) -> str:
    """Why a run with this state is over; nothing if it is not."""
    epochs, waited = state["epochs"], state["epochs"] - state["best_epoch"]
    if epochs >= training.max_epochs:
        return "all epochs done"
    # an epoch that would not be over in time is not begun
    if training.max_time and epochs and state["elapsed"] + state["seconds"] > training.max_time:
        return "the time is up"
    if training.early_stopping and waited >= training.early_stopping:
        return f"no better validation loss in {training.early_stopping} epochs"
    return ""


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Lightning's checkpoint, in place of the old one only when it is complete."""
    if not trainer.is_global_zero:  # takes part in gathering, and writes nothing
        trainer.save_checkpoint(path)
        return
    with replacing(path) as partial:
        trainer.save_checkpoint(partial)
