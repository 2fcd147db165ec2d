"""The process around a run: its state does not reach the numbers, and is as before when the run is over."""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from fastlr.errors import InputError
from fastlr.standard_settings import standard_settings

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


class OutputError(InputError):
    """A file of a run cannot be written."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """The state of a new process for the block, and the caller's own state after it.

    Settings of PyTorch and NumPy (``standard_settings``), random numbers, environment variables, warnings, log levels.
    """
    with _environment(), _random_numbers(), _lightning_silenced(), standard_settings():
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of writing files, as one line.

    Raises:
        OutputError: the disk is full, the folder read-only, ...
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"output: {error.filename or folder} cannot be written ({error.strerror or error})") from None
    except (SafetensorError, RuntimeError) as error:  # of safetensors and of torch.save, which hide the reason
        if isinstance(error, RuntimeError) and "writ" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise OutputError(f"output: {folder} cannot be written, perhaps for want of space ({reason})") from None


@contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PL_")]:
        del os.environ[name]  # Lightning takes defaults from PL_TRAINER_MAX_EPOCHS and the like
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def _random_numbers() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the caller's)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _lightning_silenced() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        with warnings.catch_warnings():
            for name in LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
