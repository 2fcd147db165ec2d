"""A run in a host program: its state does not reach the weights, and is left as it was."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from train_toy import write_run

from fastlr.checkpoint import load_checkpoint
from fastlr.errors import ConfigError, InputError, NonFiniteError
from fastlr.train import TrainingStopped, train
from fastlr.train.module import TrainingModule

pytestmark = pytest.mark.filterwarnings("ignore:.*charged structures have dipoles")
STRANGE = {
    "PL_TRAINER_MAX_EPOCHS": "3",
    "PL_TRAINER_ACCUMULATE_GRAD_BATCHES": "2",
    "PL_GLOBAL_SEED": "7",
    "LOCAL_RANK": "1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "SLURM_JOB_ID": "5",
    "SLURM_JOB_NAME": "job",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
}


def state() -> dict:
    """What a host program may have set."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(("lightning", "fastlr"))]
    loggers = [logging.getLogger(name) for name in ("", "torch", *sorted(names))]
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "loggers": [(logger.name, logger.level, tuple(logger.handlers), logger.propagate) for logger in loggers],
        "filters": list(warnings.filters),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)],
        "threads": (torch.get_num_threads(), threading.active_count()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "precision": torch.get_float32_matmul_precision(),
        "backends": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.is_anomaly_enabled()),
        "arithmetic": np.geterr(),
        "place": os.getcwd(),
        "pyplot": "matplotlib.pyplot" in sys.modules,
    }


def assert_same(before: dict) -> None:
    after = state()
    assert [key for key in before if before[key] != after[key]] == []


@pytest.fixture
def restored():
    """PyTorch's and NumPy's settings, whatever a test does to them."""
    before = np.geterr()
    yield
    np.seterr(**before)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)


def test_surroundings_do_not_reach_the_weights_and_stay(tmp_path, restored, monkeypatch):
    config = write_run(tmp_path, train=6, max_epochs=1)
    plain = load_checkpoint(train(config, tmp_path / "plain"))[1]

    for name, value in STRANGE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.DEBUG)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    np.seterr(all="raise")
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        before = state()
        path = train(config, tmp_path / "strange")
        assert_same(before)
    strange = load_checkpoint(path)[1]
    assert strange.keys() == plain.keys()
    for name in plain:
        assert torch.equal(strange[name], plain[name]), name


def test_runs_that_fail_leave_the_process_as_it_was(tmp_path, monkeypatch):
    config = write_run(tmp_path, train=4, max_epochs=1)
    before = state()
    with pytest.raises(ConfigError):
        train(config, tmp_path / "out", overrides=["data.train=nowhere.xyz"])
    assert_same(before)

    def careless(terms, config):
        """Whatever a library may do."""
        draws = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        os.environ["FASTLR_OF_A_TEST"], os.environ["HOME"] = str(draws), "nowhere"
        warnings.simplefilter("error")
        return torch.tensor(torch.nan)

    with monkeypatch.context() as patch, pytest.raises(NonFiniteError, match="within the first epoch, from which noth"):
        patch.setattr("fastlr.train.module.total_loss", careless)
        train(config, tmp_path / "out")
    assert_same(before)
    assert not (tmp_path / "out" / "model.safetensors").exists()

    def greedy(self, *args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"lower training\.batch_size.*the first"),
    ):
        patch.setattr(TrainingModule, "training_step", greedy)
        train(config, tmp_path / "greedy")
    assert_same(before)

    def stop(self, *args):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match="from which nothing can be") as stopped:
        patch.setattr(TrainingModule, "on_train_batch_start", stop)
        train(config, tmp_path / "other")
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert_same(before)


def test_pictures_have_their_own_style(tmp_path):
    import matplotlib

    from fastlr.train.plots import plot_parity

    with matplotlib.rc_context({"text.usetex": True, "axes.grid": True}):
        plot_parity({"energy": (np.arange(3.0), np.arange(3.0))}, tmp_path / "parity.png", "title")
        assert matplotlib.rcParams["text.usetex"] is True
    assert (tmp_path / "parity.png").stat().st_size > 0
