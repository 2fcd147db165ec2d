"""A training run from configuration to exported model."""

import json
import logging
import os
import warnings
from inspect import signature
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml
from rich.console import Console

from fastlr.backends import Operations, resolve
from fastlr.checkpoint import load_checkpoint, load_state, save_checkpoint
from fastlr.checks.operations import check_operations
from fastlr.errors import CheckpointError, ConfigError
from fastlr.kernels.files import replacing
from fastlr.models import ModelConfig, build_model

from .card import describe_set, make_card
from .config import AUTO, TrainConfig, TrainingConfig, complete_model, read_config
from .data import Sample, make_samples, read_frames
from .metrics import evaluate_set
from .module import Interrupted, StopRequest, TrainingModule
from .plots import plot_learning_curve, plot_parity
from .progress import Progress
from .recorder import Recorder
from .references import electronegativity_shifts, energy_shifts, from_data

SETS = ("train", "validation", "test")


def train(
    config: dict | str | Path,
    output: str | Path | None = None,
    resume: bool = False,
    overrides: list[str] | None = None,
    console: Console | None = None,
) -> Path:
    """Train a model.

    Args:
        config: plain data, or the path of a YAML file (``fastlr.train.config.TrainConfig``).
        output: directory for everything the run writes; default: runs/<name of the configuration file>.
        resume: go on from ``last.ckpt`` in ``output``, exactly as if the run had not been interrupted.
        overrides: "key.sub=value" changes to the configuration.
        console: where progress goes; None for silence.

    Returns:
        Path of the exported model, ``output``/model.safetensors: the averaged weights of the best epoch.

    Raises:
        ConfigError: invalid configuration or output directory; the message names the key.
        InputError: a structure cannot be used; the message names file and frame.
        NonFiniteError: the loss is no longer a number; the last good checkpoint and model remain.
        KeyboardInterrupt: Ctrl-C; everything up to the last whole epoch is saved.
    """
    settings = read_config(config, overrides)
    output = Path(output) if output is not None else _default_output(config)
    launched = "LOCAL_RANK" in os.environ  # a further process of a run on several devices
    if not launched:
        _check_output(output, resume)
    checkpoint = output / "last.ckpt" if resume and (output / "last.ckpt").is_file() else None
    if resume:
        settings = _as_started(settings, output)

    progress = Progress(console if not launched else None, settings.training.max_epochs)
    with StopRequest() as stop, progress, warnings.catch_warnings():
        _silence_lightning()
        settings, weights = _starting_model(settings)
        samples, model_config = _load(settings, progress)
        settings = settings.model_copy(update={"model": model_config.model_dump()})
        output.mkdir(parents=True, exist_ok=True)
        if not launched:
            _write(output / "config.yaml", yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True))
        data = {name: describe_set(getattr(settings.data, name), samples[name]) for name in SETS if samples[name]}

        def export(model, epoch, errors):
            card = make_card(settings, data, epoch, {"validation": {"overall": errors}})
            save_checkpoint(output / "model.safetensors", model_config, model.state_dict(), card)

        pl.seed_everything(settings.training.seed, verbose=False)
        model = build_model(model_config)
        if weights is not None:
            load_state(model, weights, settings.training.start_from)
        left_out = {"edge_basis": "Bessel roots are trained"} if model_config.bessel_trainable else {}
        operations = resolve(
            settings.training.backend, _accelerator(settings.training), model_config.torch_dtype, left_out
        )
        model.use(operations)
        parity = ", ".join(f"{row.operation} {row.error:.1e}" for row in check_operations(model, operations, order=2))
        progress.say(f"backend '{operations.backend}'" + (f", parity with the reference: {parity}" if parity else ""))
        progress.say(
            f"{model_config.kind}, {sum(p.numel() for p in model.parameters())} parameters, "
            + ", ".join(f"{len(samples[name])} {name}" for name in SETS if samples[name])
            + f" structures, output in {output}"
        )
        tables = settings.training.radial_tables and backend_serves_tables(operations)
        module = TrainingModule(model, settings, samples["train"], samples["validation"], stop, tables, progress.say)
        recorder = Recorder(output, settings, progress, export)
        trainer = _trainer(settings, recorder)
        try:
            _fit(trainer, module, checkpoint)
        except Interrupted:
            if (output / "metrics.csv").exists():
                plot_learning_curve(output / "metrics.csv", output / "learning_curve.png")
            name = config if isinstance(config, str | Path) else "CONFIG"
            raise KeyboardInterrupt(
                f"stopped after {recorder.epochs_done} whole epochs, which are saved; go on with: "
                f"fastlr train {name} --output {output} --resume"
            ) from None
        if trainer.is_global_zero:
            _finish(output, settings, samples, data, recorder, progress)
    return output / "model.safetensors"


def backend_serves_tables(operations: Operations) -> bool:
    """Whether tables are worth their while; the reference stays what it is, the plain evaluation of the model."""
    return operations.backend != "reference" and operations.offers("tabulated_product")


def _default_output(config: dict | str | Path) -> Path:
    return Path("runs") / (Path(config).stem if isinstance(config, str | Path) else "train")


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output: {output} is a file")
    if not resume and output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"output: {output} is not empty; choose another directory, or go on with --resume")
    if resume and not (output / "config.yaml").is_file():
        raise ConfigError(f"output: {output} holds no run to resume")


def _as_started(settings: TrainConfig, output: Path) -> TrainConfig:
    """The configuration with the model of the run being resumed, whose constants were taken from its data."""
    started = read_config(output / "config.yaml").model
    for key, value in settings.model.items():
        if value != AUTO and started.get(key) != value:
            raise ConfigError(f"model.{key}: is {value!r}, but the run to resume was started with {started.get(key)!r}")
    return settings.model_copy(update={"model": started})


def _starting_model(settings: TrainConfig) -> tuple[TrainConfig, dict | None]:
    """The configuration with the model of ``training.start_from``, and its weights; None for a fresh start.

    Raises:
        ConfigError: the model section asks for another model than that file holds; the message names the key.
    """
    path = settings.training.start_from
    if path is None:
        return settings, None
    config, weights, _ = load_checkpoint(path)
    held = config.model_dump()
    for key, value in settings.model.items():
        if value != AUTO and held.get(key) != value:
            raise ConfigError(f"model.{key}: is {value!r}, but the model in training.start_from has {held.get(key)!r}")
    return settings.model_copy(update={"model": held}), weights


def _load(settings: TrainConfig, progress: Progress) -> tuple[dict[str, list[Sample]], ModelConfig]:
    """The samples of each set, and the model configuration with what they say of it."""
    frames = {name: read_frames(getattr(settings.data, name), name) for name in SETS}
    for label, weight in settings.loss.weights.items():
        if weight > 0.0 and not any(label in frame.labels for frame in frames["train"]):
            raise ConfigError(f"loss.{label}: has weight {weight:g}, but no training structure has this label")
    section = dict(settings.model)
    if section.get("species", AUTO) == AUTO:
        numbers = sorted(
            {(int(z), s) for f in frames["train"] for z, s in zip(f.atoms.numbers, f.atoms.symbols, strict=True)}
        )
        section["species"] = [symbol for _, symbol in numbers]
    provisional = complete_model(section, {})
    samples = {}
    for name in SETS:
        progress.start(f"neighbour lists, {name}", len(frames[name]))
        samples[name] = make_samples(frames[name], provisional, progress.advance)
    found = from_data(samples["train"], provisional.species)
    if section.get("electronegativity_shifts") == AUTO:
        found["electronegativity_shifts"] = electronegativity_shifts(samples["train"], provisional)
    if section.get("energy_shifts", AUTO) == AUTO and "energy_shifts" in found:
        found["energy_shifts"] = energy_shifts(samples["train"], complete_model(section, found), settings.training.seed)
    return samples, complete_model(section, found)


def _accelerator(training: TrainingConfig) -> str:
    if training.accelerator != "auto":
        return training.accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"  # never a device without float64


def _trainer(settings: TrainConfig, recorder: Recorder) -> pl.Trainer:
    training = settings.training
    accelerator = _accelerator(training)
    if accelerator == "cuda" and torch.cuda.device_count() < training.devices:
        raise ConfigError(f"training.devices: {training.devices} asked for, {torch.cuda.device_count()} GPUs found")
    return pl.Trainer(
        accelerator=accelerator,
        devices=training.devices,
        strategy="ddp_find_unused_parameters_true" if training.devices > 1 else "auto",
        max_epochs=training.max_epochs,
        gradient_clip_val=training.gradient_clip,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # forces are derivatives, in validation too
        use_distributed_sampler=False,  # the module shares out whole batches
        reload_dataloaders_every_n_epochs=1,  # a new order of batches each epoch
    )


def _fit(trainer: pl.Trainer, module: TrainingModule, checkpoint: Path | None) -> None:
    options = {}
    if checkpoint is not None:
        try:
            epoch = torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]
        except Exception as error:
            raise CheckpointError(f"{checkpoint}: cannot be read ({type(error).__name__})") from None
        if epoch >= trainer.max_epochs:
            raise ConfigError(f"training.max_epochs: {trainer.max_epochs}, but the run to resume did {epoch} already")
        options["ckpt_path"] = str(checkpoint)
        if "weights_only" in signature(trainer.fit).parameters:
            options["weights_only"] = True
    trainer.fit(module, **options)


def _finish(output, settings, samples, data, recorder, progress) -> None:
    """Errors of the exported model on the held-out sets, its final card, pictures and summary."""
    path = output / "model.safetensors"
    model_config, state, _ = load_checkpoint(path)
    model = build_model(model_config, resolve("auto", dtype=model_config.torch_dtype))
    load_state(model, state, path)
    model.eval().requires_grad_(False)
    errors, training = {}, settings.training
    for name in ("validation", "test"):
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
        "epochs": recorder.epochs_done,
        "best_epoch": recorder.state["best_epoch"],
        "best_validation_loss": recorder.state["best"],
        "stopped": recorder.state["stopped"] or "all epochs done",
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


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _silence_lightning() -> None:
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
