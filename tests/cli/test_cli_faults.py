"""Whatever a user gets wrong is one line on stderr that names it, and exit code 2."""

import numpy as np
import pytest
from ase import Atoms
from ase.io import write


def unknown_element(atoms: Atoms) -> None:
    atoms.symbols[1] = "U"


def nan_position(atoms: Atoms) -> None:
    atoms.positions[2, 0] = np.nan


def flat_cell(atoms: Atoms) -> None:
    atoms.set_cell([[5, 0, 0], [10, 0, 0], [0, 0, 5]])
    atoms.pbc = True


def overlap(atoms: Atoms) -> None:
    atoms.positions[2] = atoms.positions[0] + 0.001


def charge_word(atoms: Atoms) -> None:
    atoms.info["charge"] = "abc"


def wire(atoms: Atoms) -> None:
    atoms.set_cell([9, 9, 9])
    atoms.pbc = [True, False, False]


def assert_one_line_error(result, *parts: str) -> None:
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1 and result.err.endswith("\n")
    for part in parts:
        assert part in result.err


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (unknown_element, ["element U", "atom 1", "H, O, Na, Cl"]),
        (nan_position, ["position of atom 2", "not finite"]),
        (flat_cell, ["volume"]),
        (overlap, ["atoms 0 and 2 overlap"]),
        (charge_word, ["charge must be a finite number", "'abc'"]),
        (wire, ["periodic in one direction"]),
    ],
)
@pytest.mark.parametrize("command", ["predict", "md", "relax"])
def test_unusable_structure(fastlr, model_file, water_atoms, tmp_path, spoil, parts, command):
    spoil(water_atoms)
    path, output = tmp_path / "bad.extxyz", tmp_path / "out.extxyz"
    write(path, [water_atoms])
    steps = ["--steps", 2] if command == "md" else []
    result = fastlr(command, model_file, path, "-o", output, *steps)
    assert_one_line_error(result, str(path), "structure 0 (", *parts)
    assert sorted(tmp_path.iterdir()) == [path]  # and nothing was left behind


def test_the_culprit_among_many_is_named(fastlr, model_file, water_atoms, tmp_path):
    bad = water_atoms.copy()
    unknown_element(bad)
    path = tmp_path / "many.extxyz"
    write(path, [water_atoms, water_atoms, bad])
    assert_one_line_error(fastlr("predict", model_file, path), str(path), "structure 2 (")


def test_unreadable_input(fastlr, model_file, tmp_path):
    (tmp_path / "empty.xyz").touch()
    (tmp_path / "junk.xyz").write_text("what is\nthis\n")
    (tmp_path / "cut.xyz").write_text("3\n\nO 0 0 0\nH 0 0 1\n")
    (tmp_path / "unheard.of").write_text("zzz")
    for name, part in {
        "missing.xyz": "no such file",
        "empty.xyz": "the file is empty",
        "junk.xyz": "cannot be read",
        "cut.xyz": "cannot be read",
        "unheard.of": "cannot be read",
        ".": "is a folder",
    }.items():
        path = tmp_path / name
        assert_one_line_error(fastlr("predict", model_file, path), f"{path}: ", part)


def test_model_faults(fastlr, model_file, water_file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    with open(model_file, "rb") as file:
        content = file.read()
    for size in (0, 5, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:size])
        assert_one_line_error(fastlr("predict", cut, water_file), str(cut))
    assert_one_line_error(fastlr("predict", "nosuchmodel", water_file), "no bundled model is named 'nosuchmodel'")
    assert_one_line_error(fastlr("info", tmp_path / "no.safetensors"), "no.safetensors: no such model file")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--charge", "abc"], ["charge must be a finite number, got 'abc'"]),
        (["--charge", "nan"], ["charge must be a finite number, got 'nan'"]),
        (["--charge", "1_0"], ["charge must be a finite number, got '1_0'"]),
        (["--charge=-inf"], ["charge must be a finite number, got '-inf'"]),
        (["--backend", "magic"], ["backend 'magic'", "there is no such backend"]),
        (["--device", "abacus"], ["device 'abacus' cannot be used"]),
        (["--dtype", "float16"], ["dtype must be", "'float16'"]),
        (["--memory-budget", "-1"], ["memory budget must be"]),
        (["--memory-budget", "1e-9"], ["memory budget is 1e-09 GiB"]),
        (["--index", "7"], ["water.xyz", "no structure 7"]),
        (["--index", "a:b"], ["index must be", "'a:b'"]),
        (["-o", "no_folder/out.extxyz"], ["there is no folder no_folder"]),
        (["-o", "out.cif"], ["out.cif", ".extxyz"]),
        (["--nonsense"], ["--nonsense", "fastlr predict --help"]),
    ],
)
def test_option_faults(fastlr, model_file, water_file, options, parts):
    assert_one_line_error(fastlr("predict", model_file, water_file, *options), *parts)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--steps", "many"], "--steps"),
        (["--steps", "-1"], "steps must be at least 0"),
        (["--timestep", "0"], "timestep must be"),
        (["--timestep", "nan"], "timestep must be"),
        (["--temperature", "-5"], "temperature must be"),
        (["--friction", "-1", "--ensemble", "nvt"], "friction must be"),
        (["--interval", "0"], "interval must be"),
        (["--checkpoint-every", "nan"], "--checkpoint-every"),
        (["--ensemble", "npt"], "ensemble must be 'nve' or 'nvt'"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_md_option_faults(fastlr, model_file, water_file, tmp_path, options, part):
    output = tmp_path / "md.extxyz"
    assert_one_line_error(fastlr("md", model_file, water_file, "-o", output, "--steps", 1, *options), part)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("convolution --dtype float16", "there is no dtype 'float16'"),
        ("convolution --device abacus", "must be cpu or cuda"),
        ("convolution --against nobody", "there is no contestant 'nobody'"),
        ("convolution --seconds nan", "must be a finite number"),
        ("electrostatics --repeat 0", "--repeat"),
        ("electrostatics --tolerance -1", "must be a positive number"),
        ("scaling --hardness nan", "must be a positive number"),
        ("silicon --preset Q", "there is no preset 'Q'"),
        ("company --steps 0", "--steps"),
        ("", "Missing command"),
    ],
)
def test_bench_option_faults(fastlr, arguments, part):
    assert_one_line_error(fastlr("bench", *arguments.split()), part)


def test_usage_faults(fastlr, model_file):
    assert_one_line_error(fastlr("predict", model_file), "INPUT", "fastlr predict --help")
    assert_one_line_error(fastlr("bogus"), "bogus", "fastlr --help")
    assert_one_line_error(fastlr("md", model_file, "x.xyz", "--steps", 1), "--output")
