"""Files that are whole or not there: nothing is left of those that could not be written."""

import os

import numpy as np
import pytest
from fastlr.bench import report
from fastlr.kernels import cache
from fastlr.kernels.files import replacing
from reference import structures
from reference.models import small_model

from fastlr.checkpoint import save_checkpoint
from fastlr.engine.recording import Recorder
from fastlr.simulation.prediction import write_predictions
from fastlr.simulation.records import MDState, save_state
from fastlr.train.history import keep_rows


def _save_state(path):
    zeros = np.zeros((1, 3))
    save_state(path, MDState(0, np.ones(1, int), zeros, zeros, np.eye(3), {}, {}, {}, {}))


def _save_model(path):
    model = small_model("nequip")
    save_checkpoint(path, model.config, model.state_dict(), {})


WRITERS = {
    "cache": lambda path: cache.write(path.name, b"new"),
    "model": _save_model,
    "state of a run": _save_state,
    "predictions": lambda path: write_predictions(path, [structures.water()]),
    "trace": lambda path: Recorder().save_trace(path),
    "metrics": lambda path: keep_rows(path, 1),
    "benchmark": lambda path: report.save(path, "none", []),
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file with content, also where kernels keep theirs."""
    monkeypatch.setenv("FASTLR_CACHE", str(tmp_path))
    limits = {"copy_GB_per_s": 1.0, "float32_GFLOP_per_s": 1.0}
    monkeypatch.setattr(report.machine, "limits", lambda device: limits)
    (tmp_path / "file").write_text("epoch\n1\n2\n", encoding="utf-8")
    return tmp_path / "file"


@pytest.mark.parametrize("name", WRITERS)
def test_of_a_failed_replacement_nothing_is_left(name, path, monkeypatch):
    """As where another process holds the file open, on Windows; the old file stays."""

    def refuse(source, target):
        assert os.path.getsize(source)
        raise PermissionError("in use")

    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    if name == "cache":  # works without
        WRITERS[name](path)
    else:
        with pytest.raises(PermissionError, match="in use"):
            WRITERS[name](path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_new_file_takes_the_place_of_the_old_one(name, path):
    before, mode = path.read_bytes(), path.stat().st_mode
    WRITERS[name](path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() != before
    assert path.stat().st_mode == mode


def test_after_an_error(path):
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial, partial.open("w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_where_none_can_be_written(tmp_path, monkeypatch):
    """The cache of a read-only home does no harm."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTLR_CACHE", str(tmp_path / "file"))
    cache.write("name", b"content")
    assert cache.read("name") is None
