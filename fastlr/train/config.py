"""Training configurations: read, overridden, and validated before anything starts."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PlainSerializer,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from fastlr.errors import ConfigError
from fastlr.models import ModelConfig, parse_config
from fastlr.models.config import describe
from fastlr.pretrained import model_path

from .yaml_text import parse_yaml

AUTO = "auto"
# what the training data decides unless the configuration does, with stand-ins to validate the rest by
FROM_DATA = {"avg_num_neighbors": 1.0, "energy_shifts": 0.0, "energy_scales": 1.0}
MAY_BE_AUTO = {**FROM_DATA, "electronegativity_shifts": 0.0}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_seconds(value: Any) -> Any:
    """ "HH:MM:SS", or minutes."""
    if isinstance(value, str):
        if not re.fullmatch(r"\d+:[0-5]?\d:[0-5]?\d", value):
            raise ValueError("a time is 'HH:MM:SS' or a number of minutes")
        hours, minutes, seconds = (int(part) for part in value.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    return value * 60 if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_minutes(seconds: float | None) -> float | None:
    """The time as given, so that a run's own configuration file means the same."""
    return None if seconds is None else seconds / 60


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value, info):
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"is {str(value).lower()}, which is no value for it")
        return value


PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Paths = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)]


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
    # of the whole run, resumptions included; given as HH:MM:SS or minutes
    max_time: Annotated[PositiveFloat | None, BeforeValidator(_as_seconds), PlainSerializer(_as_minutes)] = None
    optimizer: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 0.005
    weight_decay: NonNegativeFloat = 0.0  # on matrices only, never on scales, shifts and hardness
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 100
    final_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01  # cosine ends, plateau stops; times the first
    plateau_patience: PositiveInt = 10  # epochs
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    early_stopping: PositiveInt | None = None  # epochs without a better validation loss
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # decay a step of the averaged weights
    gradient_clip: PositiveFloat | None = 10.0  # norm
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    start_from: str | None = None  # bundled model or model file (relative to this file) to go on from
    backend: str = "auto"  # kernels; see "fastlr doctor"
    # radial networks from tables that agree with them to rounding, made anew at each step; not with "reference"
    radial_tables: bool = True
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0


class TrainConfig(Section):
    """Everything about a run. ``model`` is ``fastlr.models.config``; "auto" and what is left out come from the data."""

    model: dict[str, Any]
    data: DataConfig
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()


def read_config(config: dict | str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """A validated training configuration, its paths made absolute.

    Args:
        config: plain data, or the path of a YAML file (``yaml_text``). Paths, arrays and tensors are plain data, too.
        overrides: "key.sub=value", the value in YAML; each key once.

    Raises:
        ConfigError: not readable, or a key is unknown, missing, invalid or stands twice; the message names the key.
    """
    base, data = _read(config)
    _override_all(data, [] if overrides is None else overrides)
    # a section without entries is as good as none
    data = {key: value for key, value in data.items() if value is not None}
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
        start = model_path(training.start_from) or base / Path(training.start_from).expanduser()
        training = training.model_copy(update={"start_from": str(start)})
    return parsed.model_copy(update={"data": DataConfig(**files), "training": training})


def _read(config: dict | str | Path) -> tuple[Path, dict]:
    """The folder for relative paths, and a copy of the plain data."""
    if isinstance(config, str | Path):
        path = Path(config)
        try:
            text = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        base, data = path.resolve().parent, parse_yaml(text, str(path))
    else:
        base, data = Path.cwd(), _plain(config)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        found = "it is empty" if data is None else f"found {type(data).__name__}"
        found = f"found keys {sorted(map(str, data))}" if isinstance(data, dict) else found
        raise ConfigError(f"a training configuration has the sections model, data, loss and training; {found}")
    return base, data


def _plain(value: Any) -> Any:
    """A copy as a file would give it: arrays and tensors as lists and numbers, paths as text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic)) or torch.is_tensor(value):
        return _plain(value.tolist())
    return str(value) if isinstance(value, Path) else deepcopy(value)


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
    fields = type(parse_config(filled)).model_fields
    for key, value in model.items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(isinstance(each, bool) for each in values) and fields[key].annotation is not bool:
            raise ConfigError(f"model.{key}: is {value!r}, which is no value for it")


def complete_model(model: dict[str, Any], found: dict[str, Any]) -> ModelConfig:
    """The model configuration with what was ``found`` in the data where the section leaves it open."""
    return parse_config(found | {key: value for key, value in model.items() if value != AUTO})


def _override_all(data: dict, overrides: list[str]) -> None:
    if not isinstance(overrides, (list, tuple)) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(f"overrides: must be a list of texts 'key.sub=value', got {overrides!r:.80}")
    given = set()
    for override in overrides:
        key, separator, value = override.partition("=")
        key = key.strip()
        if not separator or not all(key.split(".")):
            raise ConfigError(f"{override}: an override is written key.sub=value")
        if key in given:
            raise ConfigError(f"{key}: is given by two overrides; which one counts?")
        given.add(key)
        _override(data, key, parse_yaml(value, key))


def _override(data: dict, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for part in sections:
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
        if not isinstance(data, dict):
            raise ConfigError(f"{key}: '{part}' is not a section")
    data[last] = value
