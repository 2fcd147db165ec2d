"""A training run from configuration to exported model."""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console

from fastlr.backends import Operations, resolve
from fastlr.checkpoint import load_checkpoint, load_state, save_checkpoint
from fastlr.checks.operations import check_operations
from fastlr.errors import ConfigError, InputError, NonFiniteError
from fastlr.kernels.files import replacing
from fastlr.models import ModelConfig, build_model
from fastlr.signals import StopSignal, stop_on_signals
from fastlr.simulation.arguments import require_switches

from .card import describe_set, make_card, versions
from .config import TrainConfig, TrainingConfig, read_config
from .data import Sample, batch_order
from .metrics import evaluate_set
from .module import Interrupted, TrainingModule, raise_if
from .plots import plot_learning_curve, plot_parity
from .preparation import SETS, load_data, starting_model
from .process import OutputError, undisturbed, writing
from .progress import Progress
from .record import RunRecord, Started, check_data, check_settings, digest_of, digest_of_samples, read_started
from .recorder import Recorder, why_over

OF_A_RUN = "# The configuration of this run, as fastlr train wrote it.\n"


class TrainingStopped(KeyboardInterrupt):
    """A signal stopped a run between two steps; says what is saved and how to go on."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def train(
    config: dict | str | Path,
    output: str | Path | None = None,
    resume: bool = False,
    overrides: list[str] | None = None,
    console: Console | None = None,
) -> Path:
    """Train a model.

    The state of the process (random numbers, environment, log levels, modes of PyTorch, ...) neither reaches the result
    nor is changed.

    Args:
        config: plain data, or the path of a YAML file (``fastlr.train.config.TrainConfig``).
        output: directory for everything the run writes; default: runs/<name of the configuration file>.
        resume: go on from ``last.ckpt`` in ``output``, exactly as if the run had not been interrupted; a run that is
            over is left as it is.
        overrides: "key.sub=value" changes to the configuration.
        console: where progress goes; without one there is none, and warnings are Python's.

    Returns:
        Path of the exported model, ``output``/model.safetensors: the averaged weights of the best epoch.

    Raises:
        ConfigError: invalid configuration or output directory, or not that of the run to resume; the message names
            the key.
        InputError: a structure or its labels cannot be used, with file and frame; or a file cannot be written.
        CheckpointError: the checkpoint of the run to resume, or the model to start from, cannot be read.
        NonFiniteError: the loss is no longer a number; the message says what is saved.
        TrainingStopped: SIGINT (Ctrl-C) or SIGTERM; a KeyboardInterrupt that says what is saved.
    """
    settings = read_config(config, overrides)
    output = _folder(output) if output is not None else _default_output(config)
    require_switches(resume=resume)
    if console is not None and not isinstance(console, Console):
        raise InputError(f"console must be a rich.console.Console or None, got {console!r:.80}")
    # a further process of a run on several devices; elsewhere LOCAL_RANK is another program's
    launched = settings.training.devices > 1 and "LOCAL_RANK" in os.environ
    if not launched:
        with writing(output):
            _check_output(output, resume)
    started = _started(output, settings) if resume else None
    _check_devices(settings.training)
    progress = Progress(Console(quiet=True) if launched else console, settings.training.max_epochs)
    over = why_over(started.state, settings.training) if started else ""
    if over and (output / "summary.json").is_file():
        progress.say(_nothing_to_do(over, started.state, output))
        return output / "model.safetensors"
    with undisturbed(), stop_on_signals() as stop, progress:
        run = _Run(settings, output, progress, stop, started, launched)
        with _endings_told(run, _command(config, output, overrides or [])):
            run.go(over)
    return output / "model.safetensors"


def _started(output: Path, settings: TrainConfig) -> Started | None:
    """The run to resume, if it has come to a checkpoint; its settings are compared."""
    if not (output / "last.ckpt").is_file():
        return None
    started = read_started(output / "last.ckpt")
    check_settings(started.record, settings)
    if not (output / "model.safetensors").is_file():
        raise ConfigError(f"output: {output} lacks model.safetensors, the best epoch of the run to resume")
    return started


@contextmanager
def _endings_told(run: "_Run", command: str) -> Iterator[None]:
    """Have any early end of a run say what is saved, and after a signal the command to go on with."""
    try:
        yield
    except (Interrupted, SystemExit):  # Lightning ends the process at signals of its own accord
        if not run.stop():
            raise
        raise TrainingStopped(f"{run.what_is_saved('stopped')}; go on with: {command}", run.stop.exit_code) from None
    except (NonFiniteError, OutputError) as error:
        raise type(error)(f"{error}; {run.what_is_saved('the run ended')}") from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(
            "the memory is not enough for a training step; lower training.batch_size, or set "
            f"training.max_atoms_per_batch; {run.what_is_saved('the run ended')}"
        ) from None


def _command(config: dict | str | Path, output: Path, overrides: list[str]) -> str:
    name = str(config) if isinstance(config, str | Path) else "CONFIG"
    changes = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["fastlr", "train", name, *changes, "--output", str(output), "--resume"])


@dataclass
class _Run:
    """One call of ``train``, with something to do."""

    settings: TrainConfig
    output: Path
    progress: Progress
    stop: StopSignal
    started: Started | None
    launched: bool
    recorder: Recorder | None = None

    def go(self, over: str) -> None:
        """Train, unless the run is ``over`` already, and finish."""
        settings, started = self.settings, self.started
        given = settings.model_dump()
        weights, start_from = None, None
        if started:
            settings = settings.model_copy(update={"model": started.record.model})
            start_from = started.record.start_from
        else:
            settings, weights = starting_model(settings)
            start_from = digest_of(settings.training.start_from)
        samples, model_config, known = load_data(settings, self.progress, lambda: raise_if(self.stop))
        _check_batches(settings.training, samples)
        digests = {key: digest_of_samples(samples[key]) for key in ("train", "validation")}
        if started:
            check_data(started.record, digests)
            given["model"] = started.record.settings["model"]
        settings = settings.model_copy(update={"model": model_config.model_dump()})
        here = {**versions(), "accelerator": _accelerator(settings.training)}
        if started and started.record.made_with != here:
            self.progress.warn(
                f"the run to resume was made with {_listed(started.record.made_with)}, and goes on with "
                f"{_listed(here)}: not to the bit"
            )
        record = RunRecord(given, settings.model, digests, start_from, here)
        data = {name: describe_set(getattr(settings.data, name), samples[name]) for name in SETS if samples[name]}
        data = {name: described | {"also_in_training": known.get(name, 0)} for name, described in data.items()}
        module = None if over else self._module(settings, model_config, weights, samples, record)
        self._open_output(settings)

        def export(model, epoch, errors):
            card = make_card(settings, data, epoch, {"validation": {"overall": errors}})
            save_checkpoint(self.output / "model.safetensors", model_config, model.state_dict(), card)

        self.recorder = Recorder(self.output, settings, self.progress, export)
        if started:
            self.recorder.load_state_dict(started.state)
        if module is not None:
            trainer = _trainer(settings, self.recorder, self.output)
            options = {"weights_only": True} if "weights_only" in signature(trainer.fit).parameters else {}
            trainer.fit(module, ckpt_path=str(started.path) if started else None, **options)
            if not trainer.is_global_zero:
                return
        with writing(self.output):
            _finish(self.output, settings, samples, data, self.recorder, self.progress, lambda: raise_if(self.stop))

    def _open_output(self, settings: TrainConfig) -> None:
        with writing(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
            if not self.launched:
                text = yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True)
                _write(self.output / "config.yaml", OF_A_RUN + text)
                (self.output / "summary.json").unlink(missing_ok=True)  # it is of a run that is over

    def _module(
        self,
        settings: TrainConfig,
        model_config: ModelConfig,
        weights: dict | None,
        samples: dict[str, list[Sample]],
        record: RunRecord,
    ) -> TrainingModule:
        torch.manual_seed(settings.training.seed)
        model = build_model(model_config)
        if weights is not None:
            load_state(model, weights, settings.training.start_from)
        left_out = {"edge_basis": "Bessel roots are trained"} if model_config.bessel_trainable else {}
        operations = resolve(
            settings.training.backend, _accelerator(settings.training), model_config.torch_dtype, left_out
        )
        model.use(operations)
        parity = ", ".join(f"{row.operation} {row.error:.1e}" for row in check_operations(model, operations, order=2))
        say = self.progress.say
        say(f"backend '{operations.backend}'" + (f", parity with the reference: {parity}" if parity else ""))
        say(
            f"{model_config.kind}, {sum(p.numel() for p in model.parameters())} parameters, "
            + ", ".join(f"{len(samples[name])} {name}" for name in SETS if samples[name])
            + f" structures, output in {self.output}"
        )
        tables = settings.training.radial_tables and backend_serves_tables(operations)
        return TrainingModule(
            model, settings, samples["train"], samples["validation"], self.stop, tables, say, record.as_dict()
        )

    def what_is_saved(self, ended: str) -> str:
        """One line on what an early end of a run leaves behind."""
        if self.recorder is None:
            return f"{ended} before training began"
        with suppress(OSError):  # of the metrics, where nothing can be written
            plot_learning_curve(self.output / "metrics.csv", self.output / "learning_curve.png")
        done, best = self.recorder.saved, self.recorder.exported
        if not done:
            model = "; model.safetensors is of that one" if best else ""
            return f"{ended} within the first epoch, from which nothing can be resumed{model}"
        return f"{ended} after {done} whole epochs, which are saved (model.safetensors: epoch {best})"


def backend_serves_tables(operations: Operations) -> bool:
    """Whether tables are worth their while; the reference stays what it is, the plain evaluation of the model."""
    return operations.backend != "reference" and operations.offers("tabulated_product")


def _default_output(config: dict | str | Path) -> Path:
    return Path("runs") / (Path(config).stem if isinstance(config, str | Path) else "train")


def _folder(output: str | Path) -> Path:
    if not isinstance(output, (str, os.PathLike)) or not str(output) or "\0" in str(output):
        raise ConfigError(f"output: must be the name of a folder, got {output!r:.80}")
    return Path(output)


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output: {output} is a file")
    if not resume and output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"output: {output} is not empty; choose another directory, or go on with --resume")
    if resume and not _is_run(output / "config.yaml"):
        raise ConfigError(f"output: {output} holds no run to resume")


def _check_devices(training: TrainingConfig) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if training.accelerator == "cuda" and not found:
        raise ConfigError("training.accelerator: is 'cuda', but PyTorch finds no CUDA device here")
    if _accelerator(training) == "cuda" and found < training.devices:
        raise ConfigError(f"training.devices: {training.devices} asked for, {found} GPUs found")


def _check_batches(training: TrainingConfig, samples: dict[str, list[Sample]]) -> None:
    """A batch for each device, in both sets."""
    for key in ("train", "validation"):
        sizes = np.array([sample.graph.num_nodes for sample in samples[key]])
        batches = len(batch_order(sizes, training.batch_size, training.max_atoms_per_batch))
        if batches < training.devices:
            raise ConfigError(
                f"training.devices: {training.devices}, but data.{key} has {batches} batches only; use fewer, or "
                "a smaller training.batch_size"
            )


def _accelerator(training: TrainingConfig) -> str:
    if training.accelerator != "auto":
        return training.accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"  # never a device without float64


def _is_run(path: Path) -> bool:
    """Whether a run, not a user, has written this configuration."""
    return path.is_file() and path.read_bytes().startswith(OF_A_RUN.encode())


def _trainer(settings: TrainConfig, recorder: Recorder, output: Path) -> pl.Trainer:
    training = settings.training
    accelerator = _accelerator(training)
    return pl.Trainer(
        accelerator=accelerator,
        devices=training.devices,
        strategy="ddp_find_unused_parameters_true" if training.devices > 1 else "auto",
        max_epochs=training.max_epochs,
        gradient_clip_val=training.gradient_clip,
        callbacks=[recorder],
        plugins=[LightningEnvironment()],  # not that of a batch system, which has a say in ranks and signals
        default_root_dir=str(output),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # forces are derivatives, in validation too
        use_distributed_sampler=False,  # the module shares out whole batches
        reload_dataloaders_every_n_epochs=1,  # a new order of batches each epoch
    )


def _finish(output, settings, samples, data, recorder, progress, check_stop: Callable[[], None]) -> None:
    """Errors of the exported model on the held-out sets, its final card, pictures and summary."""
    path = output / "model.safetensors"
    model_config, state, _ = load_checkpoint(path)
    model = build_model(model_config, resolve("auto", dtype=model_config.torch_dtype))
    load_state(model, state, path)
    model.eval().requires_grad_(False)
    errors, training = {}, settings.training
    for name in ("validation", "test"):
        check_stop()
        if samples[name]:
            errors[name], pairs = evaluate_set(
                model, samples[name], settings.loss, training.batch_size, training.max_atoms_per_batch
            )
            plot_parity(pairs, output / "parity.png", f"{name} set, {len(samples[name])} structures")
    card = make_card(settings, data, recorder.state["best_epoch"], errors)
    save_checkpoint(path, model_config, state, card)
    plot_learning_curve(output / "metrics.csv", output / "learning_curve.png")
    summary = {
        "model": path.name,
        "epochs": recorder.state["epochs"],
        "best_epoch": recorder.state["best_epoch"],
        "best_validation_loss": recorder.state["best"],
        "stopped": why_over(recorder.state, training),
        "seconds": recorder.state["elapsed"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data,
        "errors": errors,
    }
    _write(output / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    for name, report in errors.items():
        parts = [f"{key} {row['mae']:.4g} {row['unit']}" for key, row in report["overall"].items()]
        progress.say(f"{name}: MAE {', '.join(parts)}")
    progress.say(f"best epoch {summary['best_epoch']}; model in {path}")


def _nothing_to_do(over: str, state: dict, output: Path) -> str:
    key = {"all epochs done": "max_epochs", "the time is up": "max_time"}.get(over, "early_stopping")
    return (
        f"nothing to do: the run in {output} is over ({over}) after {state['epochs']} epochs; to go on, raise "
        f"training.{key}"
    )


def _listed(names: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in names.items())


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
