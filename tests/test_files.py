"""Files that are whole or not there: nothing is left of those that could not be written."""

import errno
import os
from io import StringIO

import numpy as np
import pytest
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from fastlr.bench import report
from fastlr.kernels import cache
from fastlr.kernels.files import replacing
from reference import structures
from reference.models import small_model

from fastlr.checkpoint import save_checkpoint
from fastlr.engine.recording import Recorder
from fastlr.errors import InputError
from fastlr.files import check_writable
from fastlr.simulation.prediction import write_predictions
from fastlr.simulation.records import AppendedFile, MDState, save_state
from fastlr.simulation.structures import extxyz, with_results
from fastlr.train.history import keep_rows


def _save_state(path):
    zeros = np.zeros((1, 3))
    save_state(path, MDState(0, zeros, zeros, 0.0, zeros, {}, {}, 3, 0.0, {}, {}, {}))


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


def test_errors_name_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"), replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="/none/file"), replacing(tmp_path / "none" / "file") as partial:
        partial.write_text("")
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "file"):
        (tmp_path / "elsewhere").read_text()
    with pytest.raises(OSError, match=r"File too large: '.*/file'"), replacing(tmp_path / "file") as partial:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/tmp/copied", None, str(partial))
    file = AppendedFile(tmp_path / "run.xyz")
    file.file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: '.*/run.xyz'"), file:
        file.append("record")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["/dev/null", "pipe"])
def test_devices_and_pipes_are_not_replaced(tmp_path, device):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), replacing(tmp_path / device):
        pass
    assert not (tmp_path / device).is_file()


def test_links_and_permissions_stay(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    with replacing(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_an_inputs_other_names(tmp_path):
    (tmp_path / "in").write_text("")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "hard").hardlink_to(tmp_path / "in")
    for name in ("in", "link", "hard"):
        with pytest.raises(InputError, match="is read by this very command"):
            check_writable(tmp_path / name, [None, tmp_path / "none", tmp_path / "in"], overwrite=True)
    assert check_writable(tmp_path / "new", [tmp_path / "in"]) == tmp_path / "new"


def test_extended_xyz_says_what_it_cannot_hold():
    """Also beside entries that ASE writes such that the next one, here the charge, is lost."""
    atoms = structures.water()
    lost = {"empty": "", "slash": "a\\", "two": "a\nb", "k=v": 1, "Lattice": 2, "object": object(), "json": "_JSON x"}
    atoms.info = {**lost, "name": 'Ångström "x"', "none": None, "fragment_charge": {7: 1, 2: -1}, "list": [1, "a"]}
    atoms.arrays["fragment"] = np.array([7, 2, 2], np.uint16)
    atoms.arrays |= {"words": np.array(["a b", "c", "d"]), "deep": np.zeros((3, 2, 2)), "a b": np.ones(3)}
    atoms.set_constraint([FixAtoms([1]), FixBondLength(0, 1)])
    with pytest.warns(UserWarning, match="cannot hold") as told:
        text = extxyz(with_results(atoms, {"energy": -1.5}, 1.0))
    message = str(told[0].message)
    assert all(f"info[{key!r}]" in message for key in lost) and "FixBondLength" in message
    assert all(f"arrays['{name}']" in message for name in ("words", "deep", "a b")) and len(told) == 1
    found = read(StringIO(text), format="extxyz")
    assert set(found.info) == {"name", "charge", "fragment_charge", "list"} and found.info["charge"] == 1.0
    assert found.info["name"] == 'Ångström "x"' and found.info["fragment_charge"].tolist() == [-1, 1]
    assert found.arrays["fragment"].tolist() == [7, 2, 2] and found.get_potential_energy() == -1.5
    assert found.constraints[0].index.tolist() == [1]
    assert "words" in atoms.arrays and "empty" in atoms.info  # nothing is taken from the caller


def test_where_none_can_be_written(tmp_path, monkeypatch):
    """The cache of a read-only home does no harm."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTLR_CACHE", str(tmp_path / "file"))
    cache.write("name", b"content")
    assert cache.read("name") is None
