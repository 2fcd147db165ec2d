"""Nothing of the user's is lost, whatever stands at the output; streams, full, closed or in ASCII, do no harm."""

import io
import os
import signal
import subprocess
import sys
import warnings

import pytest
from ase.io import read

from fastlr import Potential
from fastlr.simulation.files import LOG_HEADER

COMMANDS = {"predict": [], "relax": ["--steps", 1], "md": ["--steps", 2]}


def assert_refused(result, *parts):
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert all(part in result.err for part in parts), result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_an_existing_output_is_replaced_only_when_asked_to(fastlr, model_file, water_file, tmp_path, command):
    output = tmp_path / "out.extxyz"
    run = [command, model_file, water_file, "-o", output, *COMMANDS[command]]
    for existing in (output, tmp_path / "out.csv")[: 2 if command == "md" else 1]:
        for path in tmp_path.glob("out.*"):
            path.unlink()
        content = "precious" if existing == output else LOG_HEADER
        existing.write_text(content)
        assert_refused(fastlr(*run), f"{existing}: exists", "--overwrite")
        assert existing.read_text() == content
        assert fastlr(*run, "--overwrite").code in (0, 1)
        assert len(read(output)) == 3


def test_a_table_beside_the_trajectory_is_not_taken_for_a_log(fastlr, model_file, water_file, tmp_path):
    run = ["md", model_file, water_file, "-o", tmp_path / "out.extxyz", "--steps", 1]
    (tmp_path / "out.csv").write_text("precious")
    for options in ([], ["--overwrite"], ["--resume"]):
        assert_refused(fastlr(*run, *options), "out.csv: exists, and is no log of a run")
    assert (tmp_path / "out.csv").read_text() == "precious" and not (tmp_path / "out.extxyz").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_input_is_never_written_over(fastlr, model_file, water_file, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.xyz").symlink_to(water_file)
    (tmp_path / "hard.xyz").hardlink_to(water_file)
    before = water_file.read_bytes()
    for output in (water_file, "water.xyz", "../" + tmp_path.name + "/water.xyz", "link.xyz", "hard.xyz"):
        for options in ([], ["--overwrite"]):
            result = fastlr(command, model_file, water_file, "-o", output, *COMMANDS[command], *options)
            assert_refused(result, "is read by this very command")
    assert_refused(fastlr(command, model_file, "link.xyz", "-o", "water.xyz", *COMMANDS[command]), "read by this")
    assert water_file.read_bytes() == before and sorted(os.listdir()) == ["hard.xyz", "link.xyz", "water.xyz"]


def test_where_nothing_can_be_written(fastlr, model_file, water_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Potential, "iter_predict", None)  # refused before any work
    (tmp_path / "folder.xyz").mkdir()
    (tmp_path / "dangling.xyz").symlink_to(tmp_path / "nothing.xyz")
    (tmp_path / "lost.xyz").symlink_to(tmp_path / "nowhere" / "x.xyz")
    os.mkfifo(tmp_path / "pipe.xyz")
    for name, part in {
        "folder.xyz": "is a folder",
        "pipe.xyz": "device or a pipe",
        "nowhere/x.xyz": "there is no folder",
        "lost.xyz": "there is no folder",
        "water.xyz/x.xyz": "Not a directory",
        "a" * 300 + ".xyz": "File name too long",
        "out.cif": "ends in .extxyz or .xyz",
        "": "ends in .extxyz or .xyz",
    }.items():
        output = tmp_path / name if name else ""
        assert_refused(fastlr("predict", model_file, water_file, "-o", output, "--overwrite"), part)
    assert_refused(fastlr("predict", model_file, water_file, "-o", tmp_path / "dangling.xyz"), "exists")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert_refused(fastlr("predict", model_file, water_file, "-o", tmp_path / "new.xyz"), "no permission")


def test_a_name_as_long_as_a_name_can_be_and_a_link(fastlr, model_file, water_file, tmp_path):
    long, link = tmp_path / ("a" * 251 + ".xyz"), tmp_path / "link.xyz"
    link.symlink_to("target.xyz")
    assert fastlr("predict", model_file, water_file, "-o", long).code == 0
    assert fastlr("predict", model_file, water_file, "-o", link, "--overwrite").code == 0
    assert link.is_symlink() and (tmp_path / "target.xyz").read_text() == long.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(fastlr, model_file, water_file, tmp_path, command, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastlr.simulation.prediction.extxyz", full)
    monkeypatch.setattr("fastlr.simulation.records.os.fsync", full)
    result = fastlr(command, model_file, water_file, "-o", tmp_path / "out.xyz", *COMMANDS[command])
    assert_refused(result, f"{tmp_path / 'out.xyz'}: No space left on device")
    assert os.listdir(tmp_path) == ["water.xyz"]


def test_terminated_while_writing(fastlr, model_file, water_file, tmp_path, monkeypatch):
    def terminate(*_):
        assert list(tmp_path.glob(".*.partial"))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("fastlr.simulation.prediction.extxyz", terminate)
    assert fastlr("predict", model_file, water_file, "-o", tmp_path / "out.xyz").code == 143
    assert os.listdir(tmp_path) == ["water.xyz"] and signal.getsignal(signal.SIGTERM) is before


def test_trace_and_benchmark(fastlr, model_file, water_file, tmp_path):
    output = tmp_path / "x.json"
    output.write_text("precious")
    assert_refused(fastlr("profile", model_file, "-o", output), "exists", "--overwrite")
    assert_refused(fastlr("profile", model_file, water_file, "-o", water_file, "--overwrite"), "read by this")
    for benchmark in ("convolution", "electrostatics", "equilibration", "scaling", "model", "engine", "silicon"):
        assert_refused(fastlr("bench", benchmark, "-o", output), "exists", "--overwrite")
    for benchmark in ("throughput", "company", "soundness", "charges", "training", "kernels"):
        assert_refused(fastlr("bench", benchmark, "-o", output), "exists", "--overwrite")
    assert output.read_text() == "precious"


def test_warnings_are_one_line(fastlr, model_file, tmp_path):
    (tmp_path / "POSCAR").write_text("Na Cl\n1\n9 0 0\n0 9 0\n0 0 9\n1 1\nCartesian\n0 0 0\n2.5 0 0\n")
    result = fastlr("predict", model_file, tmp_path / "POSCAR")
    assert result.code == 0 and "ClNa" in result.out
    assert (
        result.err.startswith(f"warning: {tmp_path / 'POSCAR'}: no elements are named") and result.err.count("\n") == 1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as python -W error
        assert_refused(fastlr("predict", model_file, tmp_path / "POSCAR"), "no elements are named")


def test_characters_that_a_stream_does_not_know():
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii", errors="fastlr.plainly")
    stream.write("eV/Å, 3 µs → \udcff, é")
    stream.flush()
    assert content.getvalue() == b"eV/A, 3 us -> \xff, \\xe9"


def test_tables_are_never_cut(fastlr, model_file, water_file, monkeypatch):
    wide = fastlr("predict", model_file, water_file).out
    for columns in ("1", "30"):
        monkeypatch.setenv("COLUMNS", columns)
        assert sorted(fastlr("predict", model_file, water_file).out.split()) == sorted(wide.split())


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("{fastlr} --help > /dev/full", 2, "error: standard output: No space left on device\n"),
        ("{fastlr} --help | true; exit ${{PIPESTATUS[0]}}", 128 + signal.SIGPIPE, ""),
        ("{fastlr} --help >&-", 0, ""),
        ("{fastlr} bogus 2>&-", 2, ""),
        ("PYTHONIOENCODING=ascii {fastlr} relax --help | grep -q eV/A", 0, ""),
        ("COLUMNS=0 {fastlr} --help | grep -q predict", 0, ""),
    ],
)
def test_streams(command, code, error):
    program = f"{sys.executable} -c 'import sys; from fastlr.cli import main; sys.exit(main())'"
    done = subprocess.run(["bash", "-c", command.format(fastlr=program)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, error)
