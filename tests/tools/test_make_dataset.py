"""The dataset maker: reproducible, resumable, and its labels and splits are sound."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tblite")
ase_io = pytest.importorskip("ase.io")
np = pytest.importorskip("numpy")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_dataset"
SPLITS = ("train", "validation", "test")
FILES = [f"{split}.extxyz.xz" for split in SPLITS] + ["README.md"]


def make(output, *options):
    """Run the tool for a tiny set."""
    command = [sys.executable, str(TOOL), "--output", str(output), "--seed", "5", "--scale", "0.01", "--frames", "1"]
    command += ["--equilibration", "2", "--workers", "2", "--families", "water-cluster,scaled", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def digests(directory):
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("dataset") / "first"
    run = make(output)
    assert run.returncode == 0, run.stderr
    return output


@pytest.fixture(scope="module")
def frames(made):
    return {split: ase_io.read(made / f"{split}.extxyz.xz", index=":") for split in SPLITS}


def test_same_seed_gives_the_same_files(made, tmp_path):
    run = make(tmp_path / "second", "--workers", "1")
    assert run.returncode == 0, run.stderr
    assert digests(tmp_path / "second") == digests(made)


def test_resumes_from_the_work_directory(made):
    before = digests(made)
    work = made.with_name(made.name + ".work")
    times = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    for name in FILES:
        (made / name).unlink()
    run = make(made)
    assert run.returncode == 0, run.stderr
    assert " 0 to do" in run.stdout
    assert {path.name: path.stat().st_mtime_ns for path in work.iterdir()} == times
    assert digests(made) == before


def test_other_settings_do_not_mix_with_a_work_directory(made):
    run = make(made, "--seed", "6")
    assert run.returncode == 1
    assert "other settings" in run.stderr and len(run.stderr.strip().splitlines()) == 1


def test_splits_are_disjoint_by_trajectory(frames):
    trajectories = [{atoms.info["trajectory"] for atoms in frames[split]} for split in SPLITS]
    assert all(trajectories)
    assert len(set.union(*trajectories)) == sum(map(len, trajectories))


def test_labels(frames):
    everything = [atoms for split in SPLITS for atoms in frames[split]]
    assert {atoms.info["family"] for atoms in everything} == {"water-cluster", "scaled"}
    assert any(atoms.pbc.all() for atoms in everything)
    for atoms in everything:
        assert np.isfinite(atoms.get_potential_energy())
        assert np.isfinite(atoms.get_forces()).all()
        assert np.abs(atoms.get_forces().sum(axis=0)).max() < 1e-3
        assert atoms.get_charges().sum() == pytest.approx(atoms.info["charge"], abs=1e-6)
        assert atoms.info["temperature"] >= 0
        if atoms.pbc.any():
            assert np.isfinite(atoms.get_stress()).all() and np.abs(atoms.get_stress()).max() > 0
        else:
            assert np.isfinite(atoms.get_dipole_moment()).all()
            assert np.abs(atoms.get_center_of_mass()).max() < 1e-4


def test_labels_belong_to_the_stored_positions(frames):
    from tblite.ase import TBLite

    atoms = next(atoms for atoms in frames["train"] if not atoms.pbc.any())
    fresh = atoms.copy()
    fresh.calc = TBLite(method="GFN1-xTB", charge=float(atoms.info["charge"]), multiplicity=1, verbosity=0)
    assert fresh.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    assert np.abs(fresh.get_forces() - atoms.get_forces()).max() < 5e-3
    assert np.abs(fresh.get_dipole_moment() - atoms.get_dipole_moment()).max() < 5e-3
