"""What a run was started with, kept in its checkpoints and compared when it goes on."""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from fastlr.errors import CheckpointError, ConfigError
from fastlr.models import parse_config

from .config import AUTO, FROM_DATA, TrainConfig
from .data import Sample

# which may change: they end a run, or how it is carried out. So may names of files, whose contents are compared.
MAY_CHANGE = (
    "training.max_epochs",
    "training.max_time",
    "training.early_stopping",
    "training.num_workers",
    "training.start_from",  # by its content, below
)
OPEN = {"species", *FROM_DATA}  # keys of the model that come from the data where the configuration has none


@dataclass(frozen=True)
class RunRecord:
    """Settings as given, the resulting model, digests of structures and weights, and versions."""

    settings: dict
    model: dict
    data: dict[str, str]
    start_from: str | None
    made_with: dict[str, str]

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Started:
    """A run with a checkpoint: its inputs, and the state of its recorder."""

    path: Path
    record: RunRecord
    state: dict


def read_started(path: Path) -> Started:
    """What the checkpoint of a run says of it.

    Raises:
        CheckpointError: it cannot be read, or is none of a run of this version.
    """
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()  # which PyTorch does not look for
        if broken is not None:
            raise BadZipFile(broken)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling stumbles over
        raise CheckpointError(
            f"{path}: is no complete checkpoint ({type(error).__name__}); start again in another output directory"
        ) from None
    try:
        return Started(path, RunRecord(**checkpoint["fastlr"]["run"]), dict(checkpoint["callbacks"]["Recorder"]))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: does not say what its run was started with, as checkpoints of this version of fastlr do"
        ) from None


def check_settings(record: RunRecord, settings: TrainConfig) -> None:
    """Compare the settings of a run with those for its continuation.

    Raises:
        ConfigError: one of them differs; the message names the key.
    """
    then, now = record.settings, settings.model_dump()
    for section in ("loss", "training"):
        for key, value in now[section].items():
            if f"{section}.{key}" not in MAY_CHANGE and then[section].get(key) != value:
                raise _changed(f"{section}.{key}", value, then[section].get(key))
    now_from, then_from = settings.training.start_from, record.settings["training"]["start_from"]
    digest = digest_of(now_from)
    if now_from != then_from and (digest is None or digest != record.start_from):
        raise _changed("training.start_from", now_from, then_from)
    if digest not in (None, record.start_from):  # where it is gone, it is not needed
        raise ConfigError(f"training.start_from: {now_from} is no longer the model that the run to resume started from")
    _check_model(record, settings.model)


def _check_model(record: RunRecord, given: dict[str, Any]) -> None:
    then, whole = record.settings["model"], record.start_from is not None

    def is_open(section: dict, key: str) -> bool:
        return whole or section.get(key, AUTO if key in OPEN else None) == AUTO

    left_open = {key for key in record.model if is_open(given, key)}
    for key in left_open:
        if not is_open(then, key):
            raise _changed(f"model.{key}", AUTO, then[key])
    found = {key: record.model[key] for key in left_open}
    now = parse_config(found | {key: value for key, value in given.items() if value != AUTO}).model_dump()
    for key in record.model:
        if now.get(key) != record.model[key]:
            raise _changed(f"model.{key}", now.get(key), record.model[key])


def check_data(record: RunRecord, digests: dict[str, str]) -> None:
    """Compare the structures and labels of a run with those for its continuation.

    Raises:
        ConfigError: a set differs; the message names it.
    """
    for key, digest in digests.items():
        if record.data.get(key) != digest:
            raise ConfigError(
                f"data.{key}: these are not the structures and labels that the run to resume was started with; "
                "start a new run, from its model if you like (training.start_from)"
            )


def digest_of_samples(samples: list[Sample]) -> str:
    """A digest of structures, what acts on them, and their labels, in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        graph, conditions = sample.graph, sample.graph.conditions
        named = {name: getattr(graph, name) for name in ("species", "positions", "cell", "pbc", "charge")}
        if conditions is not None:
            named |= {entry.name: getattr(conditions, entry.name) for entry in fields(conditions)}
        for name, value in {**named, **sample.labels}.items():
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_of(path: str | Path | None) -> str | None:
    """Of a file; None where there is none."""
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _changed(key: str, now: Any, then: Any) -> ConfigError:
    return ConfigError(
        f"{key}: is {now!r}, but the run to resume was started with {then!r}; what may change is "
        "max_epochs, max_time, early_stopping, num_workers and the test set"
    )
