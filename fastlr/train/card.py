"""The model card that an exported model carries: what it was trained on, how, and how wrong it is."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .config import TrainConfig
from .data import SHAPES, Sample


def describe_set(paths: list[str], samples: list[Sample]) -> dict:
    """Files, and how much is in them."""
    sizes = [sample.graph.num_nodes for sample in samples]
    families = sorted({sample.family for sample in samples if sample.family is not None})
    return {
        "files": [Path(path).name for path in paths],
        "structures": len(samples),
        "periodic": sum(bool(sample.graph.pbc.any()) for sample in samples),
        "atoms": int(np.sum(sizes)),
        "atoms_per_structure": [min(sizes), max(sizes)] if sizes else [0, 0],
        "labels": {name: sum(name in sample.labels for sample in samples) for name in SHAPES},
        "families": {family: sum(sample.family == family for sample in samples) for family in families},
    }


def versions() -> dict[str, str]:
    found = {}
    for package in ("fastlr", "torch", "lightning", "ase"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def make_card(config: TrainConfig, data: dict, epoch: int, errors: dict) -> dict:
    """The card.

    Args:
        config: of the run.
        data: set -> ``describe_set``.
        epoch: whose averaged weights these are.
        errors: set -> errors in meV, Å and me (``metrics``).
    """
    start = config.training.start_from
    return {
        "trained_with": versions(),
        "training_data": data,
        "training": {
            "epoch": epoch,
            "loss": config.loss.model_dump(),
            **config.training.model_dump(exclude={"num_workers", "accelerator"}),
            "start_from": start and Path(start).name,  # where it lies is nobody's business
        },
        "errors": errors,
    }
