"""What every test shares: fixed seeds, one thread, small models and structures, no GPU tests without a GPU."""

import os
import signal

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported

from fastlr.kernels import cores
from reference import structures
from reference.models import MODELS, small_model

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as in the background of a shell, where fastlr lets it be ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tensors are small: a second thread only waits


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="there is no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries draw from the global state)


@pytest.fixture
def many_cores(monkeypatch):
    """As many threads as a test asks for, however few cores there are."""
    monkeypatch.setattr(cores, "_cores", lambda: 64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=MODELS)
def model(request):
    """Each small float64 model in turn, freshly built."""
    return small_model(request.param)


@pytest.fixture
def water():
    return structures.water()


@pytest.fixture
def water_cluster():
    return structures.water_cluster()


@pytest.fixture
def salt():
    return structures.salt()


@pytest.fixture
def skewed_cell():
    return structures.skewed_cell()


@pytest.fixture
def one_atom_cell():
    return structures.one_atom_cell()


@pytest.fixture
def slab():
    return structures.slab()
