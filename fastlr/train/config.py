"""Training configurations: read, overridden, and validated before anything starts."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from fastlr.errors import ConfigError
from fastlr.models import ModelConfig, parse_config
from fastlr.models.config import describe

AUTO = "auto"
# what the training data decides unless the configuration does, with stand-ins to validate the rest by
FROM_DATA = {"avg_num_neighbors": 1.0, "energy_shifts": 0.0, "energy_scales": 1.0}
MAY_BE_AUTO = {**FROM_DATA, "electronegativity_shifts": 0.0}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


def _as_seconds(value: Any) -> Any:
    """ "HH:MM:SS", or minutes."""
    if isinstance(value, str):
        if not re.fullmatch(r"\d+:[0-5]?\d:[0-5]?\d", value):
            raise ValueError("a time is 'HH:MM:SS' or a number of minutes")
        hours, minutes, seconds = (int(part) for part in value.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    return value * 60 if isinstance(value, int | float) and not isinstance(value, bool) else value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


Paths = Annotated[list[str], BeforeValidator(_as_list)]


class DataConfig(Section):
    """Files that ASE reads, compressed or not; relative paths start at the configuration file."""

    train: Annotated[Paths, Field(min_length=1)]
    validation: Annotated[Paths, Field(min_length=1)]
    test: Paths = []


class LossConfig(Section):
    """Weights of the terms; each is a mean over the labels of a batch.

    energy (eV/atom)^2, forces (eV/Å)^2, stress (eV/Å^3)^2, charges e^2, dipole (e Å)^2; with ``huber_delta`` each
    residual beyond that number (in the same units) counts linearly.
    """

    energy: NonNegativeFloat = 1.0
    forces: NonNegativeFloat = 1.0
    stress: NonNegativeFloat = 0.0
    charges: NonNegativeFloat = 0.0
    dipole: NonNegativeFloat = 0.0
    huber_delta: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check(self):
        if not any(self.weights.values()):
            raise ValueError("at least one weight must be positive")
        return self

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("energy", "forces", "stress", "charges", "dipole")}


class TrainingConfig(Section):
    batch_size: PositiveInt = 8  # structures
    max_atoms_per_batch: PositiveInt | None = None
    max_epochs: PositiveInt = 100
    max_time: Annotated[PositiveFloat | None, BeforeValidator(_as_seconds)] = None  # given as HH:MM:SS or minutes
    optimizer: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 0.005
    weight_decay: NonNegativeFloat = 0.0  # on matrices only, never on scales, shifts and hardness
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01  # cosine ends, plateau stops; times the first
    plateau_patience: PositiveInt = 10  # epochs
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    early_stopping: PositiveInt | None = None  # epochs without a better validation loss
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # decay a step of the averaged weights
    gradient_clip: PositiveFloat | None = 10.0  # norm
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    start_from: str | None = None  # model file to go on from, with its configuration; relative to this file
    backend: str = "auto"  # kernels; see "fastlr doctor"
    # radial networks from tables that agree with them to rounding, made anew at each step; not with "reference"
    radial_tables: bool = True
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    num_workers: Annotated[int, Field(ge=0)] = 0


class TrainConfig(Section):
    """Everything about a run. ``model`` is ``fastlr.models.config``; "auto" and what is left out come from the data."""

    model: dict[str, Any]
    data: DataConfig
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()


def read_config(config: dict | str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """A validated training configuration, its paths made absolute.

    Args:
        config: plain data, or the path of a YAML file.
        overrides: "key.sub=value", the value in YAML.

    Raises:
        ConfigError: not readable, or a key is unknown, missing or invalid; the message names the key.
    """
    base = Path.cwd()
    if isinstance(config, str | Path):
        path = Path(config)
        base = path.resolve().parent
        try:
            data = yaml.safe_load(path.read_bytes())  # YAML tells its encoding
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    else:
        data = config
    if not isinstance(data, dict):
        raise ConfigError("a training configuration has the keys model, data, loss and training")
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for override in overrides or []:
        _override(data, override)
    try:
        parsed = TrainConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error, "").lstrip(".")) from None
    check_model(parsed.model)
    charged = parsed.model.get("kind") == "nequip-lr"
    for key in ("charges", "dipole"):
        if parsed.loss.weights[key] and not charged:
            raise ConfigError(f"loss.{key}: model.kind 'nequip' predicts no charges; use 'nequip-lr' or weight 0")
    files = {key: [str(base / Path(file).expanduser()) for file in getattr(parsed.data, key)] for key in _FILES}
    training = parsed.training
    if training.start_from is not None:
        training = training.model_copy(update={"start_from": str(base / Path(training.start_from).expanduser())})
    return parsed.model_copy(update={"data": DataConfig(**files), "training": training})


_FILES = ("train", "validation", "test")


def check_model(model: dict[str, Any]) -> None:
    """Validate a model section, with stand-ins for what only the data can tell.

    Raises:
        ConfigError: names the key.
    """
    filled = {key: value for key, value in model.items() if value != AUTO or key not in (*MAY_BE_AUTO, "species")}
    if "species" not in filled:
        # tables of numbers a species must agree at least with one another
        tables = [value for value in filled.values() if isinstance(value, dict)]
        filled["species"] = [str(symbol) for symbol in tables[0]] if tables else ["H"]
    parse_config(filled)


def complete_model(model: dict[str, Any], found: dict[str, Any]) -> ModelConfig:
    """The model configuration with what was ``found`` in the data where the section leaves it open."""
    return parse_config(found | {key: value for key, value in model.items() if value != AUTO})


def _override(data: dict, override: str) -> None:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"{override}: an override is written key.sub=value")
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{key.strip()}: '{part}' is not a section")
    try:
        data[parts[-1]] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{key.strip()}: {value!r} is not valid YAML") from None
