"""fastlr md: a run that stops, however it stops, goes on as if it had not."""

import csv
import signal

import numpy as np
import pytest
from ase.io import read, write

from fastlr import Potential
from fastlr.errors import NonFiniteError
from fastlr.simulation.files import MDFiles
from fastlr.simulation.records import load_state


@pytest.fixture
def md(fastlr, model_file, water_file, tmp_path):
    """Runs a short simulation into tmp_path/NAME.extxyz."""

    def run(name, steps, *options):
        return fastlr(
            "md", model_file, water_file, "-o", tmp_path / f"{name}.extxyz", "--steps", steps, "--interval", 4, *options
        )

    return run


class Stop(Exception):
    """As sudden as a power cut: nothing in fastlr catches it."""


def interrupt_after(monkeypatch, evaluations: int, action) -> None:
    """Let ``action`` happen in the evaluation after so many."""
    left, evaluate = [evaluations], Potential.evaluate

    def evaluate_until(self, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            left[0] = 10**9
            action()
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(Potential, "evaluate", evaluate_until)


def raising(error):
    def action():
        raise error

    return action


def read_log(path) -> list[dict[str, float]]:
    with open(path) as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_files_of_a_run(md, tmp_path):
    result = md("run", 10, "--charge", "1", "--seed", 3)
    assert (result.code, result.err) == (0, "")
    frames, log = read(tmp_path / "run.extxyz", ":"), read_log(tmp_path / "run.csv")
    assert [frame.info["step"] for frame in frames] == [row["step"] for row in log] == [0, 4, 8]
    assert [row["time_fs"] for row in log] == [0, 2, 4]
    for frame, row in zip(frames, log, strict=True):
        assert frame.get_charges().sum() == pytest.approx(frame.info["charge"], abs=1e-7) == pytest.approx(1)
        assert frame.get_potential_energy() == pytest.approx(row["potential_eV"], abs=1e-6)
        assert frame.get_kinetic_energy() == pytest.approx(row["kinetic_eV"], abs=1e-6)
        assert row["total_eV"] == pytest.approx(row["potential_eV"] + row["kinetic_eV"], abs=1e-6)
        # the centre of mass stays at rest: six degrees of freedom are left of nine, which ASE does not know
        assert row["temperature_K"] == pytest.approx(frame.get_temperature() * 9 / 6, rel=1e-4)
    totals = [row["total_eV"] for row in log]
    assert np.ptp(totals) < 0.02 * np.ptp([row["potential_eV"] for row in log])
    assert np.abs(frames[0].get_momenta().sum(axis=0)).max() < 1e-6  # nve starts without drift
    assert load_state(tmp_path / "run.checkpoint.npz").step == 10


def test_starting_velocities(md, water_atoms, water_file, tmp_path):
    def start(name, *options):
        assert md(name, 0, *options).code == 0
        return read(tmp_path / f"{name}.extxyz").get_momenta()

    np.testing.assert_array_equal(start("a", "--seed", 1), start("b", "--seed", 1))
    assert not np.allclose(start("c", "--seed", 2), start("d", "--seed", 1))
    assert not start("cold", "--temperature", 0).any()
    water_atoms.set_momenta(np.full((3, 3), 0.25))
    write(water_file, water_atoms, format="extxyz")
    np.testing.assert_array_equal(start("given"), np.full((3, 3), 0.25))


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_resumed_after_a_crash_equals_uninterrupted(md, tmp_path, monkeypatch, ensemble):
    options = ["--ensemble", ensemble, "--checkpoint-every", 0]
    assert md("whole", 20, *options).code == 0
    with monkeypatch.context() as patch, pytest.raises(Stop):
        interrupt_after(patch, 11, raising(Stop()))
        md("torn", 20, *options)
    torn = MDFiles(tmp_path / "torn.extxyz")
    assert 0 < load_state(torn.checkpoint).step < 20
    with open(torn.trajectory, "a") as file:  # later than the checkpoint, the last one in part
        file.write(torn.trajectory.read_text() * 5 + torn.trajectory.read_text()[:150])
    with open(torn.log, "a") as file:
        file.write("12,6.0,-0.1,0.1,0.0,300.0\n" * 50 + "12,6.0,-0.1")
    result = md("torn", 20, *options, "--resume")
    assert result.code == 0 and "steps 10 to 20" in result.out
    whole = MDFiles(tmp_path / "whole.extxyz")
    assert torn.trajectory.read_text() == whole.trajectory.read_text()
    assert torn.log.read_text() == whole.log.read_text()
    a, b = load_state(torn.checkpoint), load_state(whole.checkpoint)
    assert a.step == b.step == 20 and a.rng == b.rng
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.momenta, b.momenta)


def test_a_longer_run_goes_on_from_a_finished_one(md, tmp_path):
    assert md("whole", 12).code == 0
    assert md("parts", 6).code == 0
    assert "already at step 6" in md("parts", 6, "--resume").out
    assert md("parts", 12, "--resume").code == 0
    assert (tmp_path / "parts.extxyz").read_text() == (tmp_path / "whole.extxyz").read_text()


def test_an_earlier_run_is_not_overwritten(md, tmp_path):
    assert md("run", 4).code == 0
    before = (tmp_path / "run.extxyz").read_text()
    result = md("run", 8)
    assert result.code == 2 and "exists" in result.err and "resume" in result.err
    assert (tmp_path / "run.extxyz").read_text() == before
    assert md("run", 8, "--overwrite", "--seed", 9).code == 0
    assert not (tmp_path / "run.extxyz").read_text().startswith(before)


def test_resume_refuses_another_run(md, fastlr, model_files, salt_file, tmp_path):
    assert md("run", 4).code == 0
    for options, part in (
        (["--timestep", 0.25], "timestep 0.5, not 0.25"),
        (["--charge", 1], "charge"),
        (["--ensemble", "nvt"], "ensemble nve, not nvt"),
    ):
        result = md("run", 8, "--resume", *options)
        assert result.code == 2 and part in result.err and result.err.count("\n") == 1
    common = ["-o", tmp_path / "run.extxyz", "--steps", 8, "--interval", 4, "--resume"]
    assert "other atoms" in fastlr("md", model_files["nequip-lr"], salt_file, *common).err
    assert "model" in fastlr("md", model_files["nequip"], tmp_path / "water.xyz", *common).err


def test_resume_from_damaged_files(md, tmp_path):
    assert md("run", 4).code == 0
    checkpoint, trajectory = tmp_path / "run.checkpoint.npz", tmp_path / "run.extxyz"
    sound, frames = checkpoint.read_bytes(), trajectory.read_bytes()
    trajectory.write_bytes(frames[:-10])
    assert "shorter" in md("run", 8, "--resume").err
    trajectory.write_bytes(frames)
    checkpoint.write_bytes(sound[: len(sound) // 2])
    result = md("run", 8, "--resume")
    assert result.code == 2 and "not a sound checkpoint" in result.err and result.err.count("\n") == 1
    checkpoint.unlink()
    assert "no such checkpoint" in md("run", 8, "--resume").err
    assert trajectory.read_bytes() == frames


def test_resume_with_nothing_there_starts(md, tmp_path):
    result = md("run", 4, "--resume")
    assert result.code == 0 and "nothing to resume" in result.err
    assert len(read(tmp_path / "run.extxyz", ":")) == 2


def test_non_finite_forces_stop_the_run_with_the_last_good_frame(md, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 7, raising(NonFiniteError("a force is not finite")))
    result = md("run", 20)
    assert result.code == 2
    assert result.err.startswith("error: step 7: a force is not finite") and result.err.count("\n") == 1
    frames = read(tmp_path / "run.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 4, 6]
    assert np.isfinite(frames[-1].get_forces()).all()
    monkeypatch.undo()
    assert md("whole", 6, "--interval", 1).code == 0
    np.testing.assert_array_equal(read(tmp_path / "whole.extxyz").positions, frames[-1].positions)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_a_checkpoint(md, tmp_path, monkeypatch, number, code):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7, lambda: signal.raise_signal(number))
        result = md("run", 20)
    assert result.code == code
    assert "stopped at step 7 of 20; add --resume to go on" in result.err
    assert load_state(tmp_path / "run.checkpoint.npz").step == 7
    assert signal.getsignal(number) == before
    assert md("run", 20, "--resume").code == md("whole", 20).code == 0
    assert (tmp_path / "run.extxyz").read_text() == (tmp_path / "whole.extxyz").read_text()


def test_progress_bar_shows_where_the_run_is(md, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    result = md("run", 6)
    for part in ("6/6", "steps/s", "ns/day", " K", " eV"):
        assert part in result.err
