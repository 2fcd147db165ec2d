"""The Lightning module: one step of training, and validation of the averaged weights."""

from collections.abc import Callable

import lightning.pytorch as pl
import torch

from fastlr.errors import InputError, NonFiniteError
from fastlr.models.derivatives import evaluate
from fastlr.models.tables import tabulate

from .config import TrainConfig
from .data import Batch, Batches, Sample, as_is, batch_order
from .ema import AveragedModel
from .loss import loss_terms, residuals, total_loss
from .metrics import Errors
from .schedule import Schedule


class Interrupted(BaseException):
    """Raised between two steps by a signal. Of a KeyboardInterrupt Lightning would end the whole process."""


def raise_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise Interrupted


class TrainingModule(pl.LightningModule):
    """Trains ``model`` and keeps its average in ``ema``.

    Args:
        model: ``NequIP`` or ``NequIPLR``.
        config: of the run.
        train, validation: samples.
        stop: tells whether to stop.
        tables: whether to interpolate radial networks from tables.
        say: prints a line.
        record: what the run was started with, for its checkpoints.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: TrainConfig,
        train: list[Sample],
        validation: list[Sample],
        stop: Callable[[], bool] = lambda: False,
        tables: bool = False,
        say: Callable[[str], None] = print,
        record: dict | None = None,
    ):
        super().__init__()
        self.model, self.ema = model, AveragedModel(model, config.training.ema)
        self.run = config
        self.train_samples, self.validation_samples = train, validation
        self.schedule = Schedule(config.training)
        self.stop, self.record = stop, record
        self.tables, self.say, self.table_intervals = tables, say, None
        self.needs_derivatives = config.loss.forces > 0.0 or config.loss.stress > 0.0
        self.time_progress = 0.0  # done fraction of max_time; set by the loop at each epoch

    # data

    def _loader(self, samples: list[Sample], epoch: int | None) -> torch.utils.data.DataLoader:
        training = self.run.training
        sizes = torch.tensor([sample.graph.num_nodes for sample in samples]).numpy()
        order = batch_order(sizes, training.batch_size, training.max_atoms_per_batch, training.seed, epoch)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if world > 1 and epoch is not None:  # every device must take the same number of steps
            order = order + order[: -len(order) % world]
        return torch.utils.data.DataLoader(
            Batches(samples, order[rank::world]),
            batch_size=None,
            shuffle=False,
            collate_fn=as_is,
            num_workers=training.num_workers,
        )

    def train_dataloader(self):
        return self._loader(self.train_samples, self.trainer.current_epoch)

    def val_dataloader(self):
        return self._loader(self.validation_samples, None)

    # training

    def configure_optimizers(self):
        training = self.run.training
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=training.learning_rate)

    def on_train_epoch_start(self):
        self.loss_sum, self.num_steps = 0.0, 0
        if self.tables:  # chosen by the weights alone, so that a resumed run chooses the same
            self._tabulate()

    def _tabulate(self):
        found = tabulate(self.model)
        if found is None:
            self.say("radial networks are evaluated at every edge: no table is fine enough")
        elif found[0] != self.table_intervals:
            self.say(f"radial tables of {found[0]} intervals, which differ from the networks by {found[1]:.1e}")
        self.table_intervals = found and found[0]

    def on_train_batch_start(self, batch, batch_idx):
        done = (self.current_epoch + batch_idx / self.trainer.num_training_batches) / self.run.training.max_epochs
        rate = self.schedule.rate(self.global_step, max(done, self.time_progress))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:
            group["lr"] = rate
        self.learning_rate = rate

    def training_step(self, batch: Batch, batch_idx: int):
        try:
            out = evaluate(self.model, batch.graph, forces=self.needs_derivatives, create_graph=True)
        except InputError as error:  # the structures were checked before, so the weights have diverged
            raise self._non_finite(batch, batch_idx, f"charge equilibration failed ({error})") from None
        terms = loss_terms(residuals(out, batch), self.run.loss)
        if not terms:  # no structure of this batch has a label that counts
            return 0.0 * out["energy"].sum()
        loss = total_loss(terms, self.run.loss)
        if not torch.isfinite(loss):
            raise self._non_finite(batch, batch_idx, f"the loss is {loss.item()}")
        self.loss_sum, self.num_steps = self.loss_sum + loss.detach(), self.num_steps + 1
        return loss

    def backward(self, loss, *args, **kwargs):
        # positions, too, require a gradient, of which the forces were made; nobody wants that of the loss
        loss.backward(*args, inputs=[p for p in self.model.parameters() if p.requires_grad], **kwargs)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.ema.update(self.model, self.global_step)
        raise_if(self.stop)

    def _non_finite(self, batch: Batch, batch_idx: int, what: str) -> NonFiniteError:
        sources = ", ".join(self.train_samples[k].source for k in batch.indices)
        return NonFiniteError(
            f"{what} in epoch {self.current_epoch + 1}, batch {batch_idx} (structures: {sources}); "
            "lower training.learning_rate or training.gradient_clip, or look at these structures"
        )

    # validation, of the average

    def on_validation_start(self):
        self.errors = Errors(self.run.loss, self.device)

    def validation_step(self, batch: Batch, batch_idx: int):
        try:
            out = evaluate(self.ema.model, batch.graph, forces=self.needs_derivatives)
        except InputError as error:
            raise NonFiniteError(
                f"charge equilibration failed in the validation of epoch {self.current_epoch + 1} ({error}); "
                "lower training.learning_rate"
            ) from None
        self.errors.add(residuals(out, batch))
        raise_if(self.stop)

    def on_validation_epoch_end(self):
        if self.trainer.world_size > 1:
            self.errors.sums = self.all_gather(self.errors.sums).sum(dim=0)

    # what an exact resume needs beyond weights and optimizer; everything else follows from seed and epoch

    def on_save_checkpoint(self, checkpoint):
        checkpoint["fastlr"] = {
            "schedule": self.schedule.state,
            "random": torch.get_rng_state(),
            "run": self.record,
        }

    def on_load_checkpoint(self, checkpoint):
        self.schedule.state = dict(checkpoint["fastlr"]["schedule"])
        torch.set_rng_state(checkpoint["fastlr"]["random"].cpu())
