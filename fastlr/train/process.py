"""The process around a run: its state does not reach the numbers, and is as before when the run is over."""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from fastlr.errors import InputError

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
NUMPY_DEFAULTS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


@contextmanager
def undisturbed() -> Iterator[None]:
    """The state of a new process for the block, and the caller's own state after it.

    Modes of PyTorch (autocast, gradients, inference, default device and float type, determinism, precision of
    products), random numbers, environment variables, warnings, log levels.
    """
    with ExitStack() as stack:
        for part in (_environment, _random_numbers, _lightning_silenced, _torch_settings):
            stack.enter_context(part())
        stack.enter_context(np.errstate(**NUMPY_DEFAULTS))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of writing files, as one line.

    Raises:
        InputError: the disk is full, the folder read-only, ...
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"output: {error.filename or folder} cannot be written ({error.strerror or error})") from None
    except (SafetensorError, RuntimeError) as error:  # of safetensors and of torch.save, which hide the reason
        if isinstance(error, RuntimeError) and "write" not in str(error) and "writ" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"output: {folder} cannot be written, perhaps for want of space ({reason})") from None


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


@contextmanager
def _torch_settings() -> Iterator[None]:
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    threads = torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.autograd.set_detect_anomaly(*anomaly)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
