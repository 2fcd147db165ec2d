"""What is read from a file is all that stands in it; what a reader would skip is refused, what it guesses is told."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import threading
import warnings

import ase.db
import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from fastlr.errors import InputError, StructureName, structure_number
from fastlr.reading import read_structure, read_structures
from fastlr.stated_names import meaning

WATER = "3\n\nO 0.0 0.0 0.119262\nH 0.0 0.763239 -0.477047\nH 0.0 -0.763239 -0.477047\n"
CUBE = 'Lattice="9 0 0 0 9 0 0 0 9"'
POSCAR = "Na Cl\n1.0\n5 0 0\n0 5 0\n0 0 5\n{}1 1\nDirect\n0 0 0\n.5 .5 .5\n"
DUMP = (
    "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\nITEM: ATOMS id {} x y z\n"
)
DATA = "\n\n2 atoms\n2 atom types\n0 5 xlo xhi\n0 5 ylo yhi\n0 5 zlo zhi\n{}\nAtoms # atomic\n\n1 1 0 0 0\n2 2 0 0 1\n"
CELL = "CRYST1   {0}   {0}   {0}  90.00  90.00  90.00 P 1           1\n"
CIF = """data_a
_cell_length_a 5\n_cell_length_b 5\n_cell_length_c 5
_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 {0}\nCl1 Cl .5 .5 .5 1.0
"""


V2000 = """a


  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  {}  0  0  0  0  0  0  0  0  0  0
    0.9600    0.0000    0.0000 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0  0  0  0
"""
GJF = "%chk=a\n#p HF/6-31G\n\n1 1\n\n{}\nO 0.0 0.0 0.0\nH 0.96 0.0 0.0\n\n"
COORD = "{}$coord\n0.0 0.0 0.0 o\n1.8 0.0 0.0 h\n$end\n{}"


def commented(comment: str) -> str:
    return WATER.replace("\n\n", f"\n{comment}\n", 1)


def pdb(*atoms: tuple[str, str], end: str = "END\n") -> str:
    line = "ATOM      1  {:<3} HOH A   1    {:8.3f}   0.000   0.000  1.00  0.00          {:>2}\n"
    return "".join(line.format(name, float(k), symbol) for k, (name, symbol) in enumerate(atoms)) + end


def gro(*names: str) -> str:
    lines = "".join(f"    1SOL {name:>6}{k:5d}{k / 10:8.3f}   0.639   0.322\n" for k, name in enumerate(names, 1))
    return f"box\n{len(names)}\n{lines}   1.86206   1.86206   1.86206\n"


@pytest.fixture
def file(tmp_path):
    """Writes a file."""

    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def read_silently(path, index=":"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_structures(path, index)


@pytest.mark.parametrize(
    ("name", "content", "formulas"),
    [
        ("a.xyz", WATER * 2 + "\n \n", ["OH2", "OH2"]),
        ("a.xyz", WATER[:-1], ["OH2"]),
        ("a.xyz", WATER.replace("\n", "\r\n"), ["OH2"]),
        ("a.xyz", WATER.replace("\n", "\r"), ["OH2"]),
        ("a.xyz", b"\xef\xbb\xbf" + WATER.encode(), ["OH2"]),
        ("a.xyz", WATER.encode("utf-16"), ["OH2"]),
        ("a.xyz", commented("Ångström"), ["OH2"]),
        ("a.xyz", commented(f'{CUBE} pbc="T T F" x="a = 1, a = 2" y={{1 = 1}} z'), ["OH2"]),
        ("a.xyz", commented('a = 1 b =2 note="x \\"y\\"" charge= 1'), ["OH2"]),
        ("a.xyz", commented("i = 0, time = 0.5, E = -17.2"), ["OH2"]),
        ("a.xyz", commented(f'{CUBE} "total energy"=1 "dipole moment"=2 "total charge"=1'), ["OH2"]),
        ("a.xyz", commented(f"{CUBE} url=https://x.org/?charge=1 note=\"charge=1, it's\" name='a b' it's"), ["OH2"]),
        ("a.xyz", commented("water in an ice lattice, no PBC here, cell properties"), ["OH2"]),
        ("a.xyz", commented("E(eV) = -1 | T=300K; P == 1 | E(eV) = 2 | T=310"), ["OH2"]),
        ("a.xyz", commented("Bob's molecule, it's E=1, energy: -5.07"), ["OH2"]),
        ("a.xyz", commented("no net charge, singlet spin, total_charge none"), ["OH2"]),
        ("a.xyz", "0\n\n" + WATER, ["", "OH2"]),
        ("a.xyz", WATER[:-1] + "\nVEC1 5 0 0\nVEC2 0 5 0\nVEC3 0 0 5\n" + WATER, ["OH2", "OH2"]),
        ("b@2.xyz", WATER, ["OH2"]),
        ("postgres.xyz", WATER, ["OH2"]),
        ("no suffix", WATER, ["OH2"]),
        ("POSCAR", POSCAR.format("Na Cl\n"), ["NaCl"]),
        ("a.cif", CIF.format("1.0"), ["NaCl"]),
        ("a.pdb", pdb(("O", "O"), ("CA", "C")), ["OC"]),
        ("a.pdb", pdb(("O", "O"), end="ENDMDL\n") * 2, ["O", "O"]),
        ("a.pdb", pdb(("O", "O"), end="ENDMDL\n") * 2 + "END\n", ["O", "O"]),
    ],
)
def test_read_as_it_is(file, name, content, formulas):
    structures = read_silently(file(name, content))
    assert [str(atoms.symbols) for atoms in structures] == formulas
    assert all(meaning(key) is None or value is not True for atoms in structures for key, value in atoms.info.items())


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.xyz", WATER + "\n" + WATER, ["line 7", "after the blank line", "found 1 frame, "]),
        ("a.xyz", "\n" + WATER, ["line 2", "found 0 frames"]),
        ("a.xyz", WATER + WATER[:60], ["frame 1", "cannot be read as extxyz"]),
        ("a.xyz", WATER + "# end\n", ["line 6", "number of atoms of frame 1", "'# end'"]),
        ("a.xyz", WATER.replace("3\n", "2\n", 1), ["line 5", "number of atoms of frame 1"]),
        ("a.xyz", WATER.replace("3\n", "4\n", 1) + WATER, ["frame 0", "line 6", "has 1 columns"]),
        ("a.xyz", WATER.replace("3\n", "-3\n", 1), ["line 1", "'-3'"]),
        ("a.xyz", commented("charge=1 charge=0"), ["frame 0", "'charge' stands twice"]),
        ("a.xyz", commented("note= charge=1"), ["frame 0", "'charge' is not read", "empty"]),
        ("a.xyz", commented('note="C:\\" charge=1'), ["frame 0", "'charge' is not read", "backslash"]),
        ("a.xyz", WATER + commented('lattice="9 0 0 0 9 0 0 0 9"'), ["frame 1 (line 6)", "'lattice' is not read"]),
        ("a.xyz", commented("Bob's ion charge=1"), ["frame 0 (line 1)", "'charge' is not read", "quote"]),
        ("a.xyz", commented("it's charge=1 isn't it"), ["'charge' is not read"]),
        ("a.xyz", commented("ion [aq charge=1"), ["'charge' is not read"]),
        ("a.xyz", commented("ion [aq charge=1]"), ["'charge' is not read"]),
        ("a.xyz", commented('{"charge": 1}'), ["'charge' is not read"]),
        ("a.xyz", commented("charge -1"), ["'charge' is not read"]),
        ("a.xyz", commented("charge=1 no charge"), ["'charge' is not read"]),
        ("a.xyz", commented("charge=T"), ["'charge' is not read"]),
        ("a.xyz", commented("charge: 1"), ["'charge' is not read"]),
        ("a.xyz", commented("note=it's Total_Charge=1"), ["'Total_Charge' is not read"]),
        ("a.xyz", commented('5" pipe energy=1'), ["'energy' is not read"]),
        ("a.xyz", commented("foo,charge=1"), ["'charge' is not read"]),
        ("a.xyz", commented('note=charge=1'), ["'charge' is not read"]),
        ("a.xyz", commented(f"{CUBE} note=it's x=1"), ["'x' is not read"]),
        ("a.xyz", commented("energy=1 | energy=2"), ["'energy' stands twice"]),
        ("a.xyz", commented(f'{CUBE} "a b"=1 "a b"=2'), ["'a b' stands twice"]),
        ("a.xyz", commented('Cell="9 0 0 0 9 0 0 0 9"'), ["'Cell' is not read", "Lattice"]),
        ("a.xyz", commented("PBC=T"), ["'PBC' is not read"]),
        ("a.xyz", commented("# CELL(abcABC): 9 9 9 90 90 90 positions{atomic_unit}"), ["CELL(abcABC)", "Lattice"]),
        ("a.xyz", commented(f'{CUBE} pbc="yes yes no"'), ["pbc must be", "yes yes no"]),
        ("a.xyz", commented(f'{CUBE} pbc="t t f"'), ["pbc must be"]),
        ("a.xyz", commented(f'{CUBE} pbc="T T"'), ["pbc must be"]),
        ("a.xyz", commented('Lattice="9 9 9 90 90 90"'), ["frame 0", "Lattice"]),
        ("a.xyz", commented("charge=1") + "VEC1 5 0 0\n", ["charge=1", "not read"]),
        ("a.xyz", commented("Properties=element:S:1:pos:R:3"), ["no column of elements"]),
        ("a.xyz", commented("Properties=species:S:1:xyz:R:3"), ["no columns of positions"]),
        ("a.xyz", commented("Properties=species:S:1:pos:R:3").replace("62\n", "62 1\n"), ["line 3", "5 columns"]),
        ("a.xyz", commented("Properties=species:S:1:pos:R:3:forces:R:3"), ["line 3", "4 columns, not 7"]),
        ("a.xyz", WATER.replace("0.763239", "0,763239"), ["frame 0", "0,763239"]),
        ("a.xyz", WATER.replace("O ", "Opls_135 "), ["frame 0", "Opls_135"]),
        ("a.xyz", commented("Ångström").encode("latin1"), ["0xc5", "no UTF-8"]),
        ("a.xyz", b"", ["the file is empty"]),
        ("a.xyz.gz", b"", ["a.xyz.gz: the file is empty"]),
        ("a.xyz.gz", gzip.compress(WATER.encode() * 99, mtime=0)[:-9], ["cannot be read", "ended"]),
        ("a.xyz.gz", WATER, ["cannot be read", "gzip"]),
        ("a.xyz.xz", lzma.compress(WATER.encode() * 99)[:-9], ["cannot be read", "ended"]),
        ("a.xyz.bz2", bz2.compress(WATER.encode() * 99)[:-9], ["cannot be read", "ended"]),
        ("a.of", "zzz", ["cannot be read", "format is not known"]),
        ("POSCAR", WATER, ["cannot be read as vasp"]),
        ("POSCAR", POSCAR.format("").replace("Na Cl", "rock salt"), ["cannot be read as vasp", "chemical symbols"]),
        ("a.dump", DUMP.format("type") + "1 1 0 0 0\n2 2 0 0 1\n", ["types", "element"]),
        ("a.dump", DUMP.format("element") + "1 H 0 0 0\n", ["2 atoms", "reads 1"]),
        ("a.lammps-data", DATA.format(""), ["types", "Masses"]),
        ("a.data", DATA.format(""), ["types", "Masses"]),
        ("a.cif", CIF.format("0.5"), ["frame 0", "occupied to 0.5"]),
        ("a.pdb", pdb(("O", "O"), end="ENDMDL\n") + pdb(("O", "O"), end=""), ["2 atoms", "reads 1"]),
        ("a.pdb", pdb(("O", "O")).replace(" HOH", "AHOH"), ["line 1", "alternate place ('A')"]),
        ("a.pdb", pdb(("O", "O")).replace("  1.00", "  0.30"), ["frame 0", "occupied to 0.3"]),
        ("a.pdb", pdb(("CA", "")), ["frame 0", "'CA' may be C or Ca"]),
        ("a.gro", gro("NA", "CL"), ["frame 0", "'NA' may be N or Na"]),
        ("a.gro", gro("OW").partition("   1.86")[0], ["has 1 lines"]),
        ("a.gro", gro("OW") * 2, ["lines after its number of atoms"]),
        ("a.sdf", "a\n\n\n  0  0\nM  END\n$$$$\nb\n", ["line 7", "more than one molecule"]),
        ("a.mol", "a\n\n\n  0  0  0     0  0            999 V3000\nM  END\n", ["line 4", "V3000"]),
        ("a.mol", V2000.format(5) + "M  END\n> <charge>\n1\n", ["states the charges 1, -1 e"]),
        ("coord", COORD.format("$chrg\n", ""), ["'charge' must be a number"]),
        ("coord", COORD.format("$chrg 1\n", "$chrg 2\n"), ["states the charges 1, 2 e"]),
        ("a.pdb", "END\n", ["holds no structure"]),
    ],
)  # fmt: skip
def test_refused_in_one_line(file, name, content, parts):
    path = file(name, content)
    with pytest.raises(InputError) as caught:
        read_silently(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "content", "formula", "parts"),
    [
        ("a.xyz", WATER[:-4], "OH2", ["frame 0", "cut short"]),
        ("a.xyz", WATER.replace("262\n", "262 -0.8\n"), "OH2", ["columns after the first four"]),
        ("POSCAR", POSCAR.format(""), "NaCl", ["first line", "Na, Cl"]),
        ("a.dump", DUMP.format("mass") + "1 1.008 0 0 0\n2 15.999 0 0 1\n", "HO", ["taken for Å", "from masses: H, O"]),
        ("a.lammps-data", DATA.format("\nMasses\n\n1 1.008\n2 15.999\n"), "HO", ["taken for Å", "from masses: H, O"]),
        ("data.water", DATA.format("\nMasses\n\n1 1.008\n2 15.999\n"), "HO", ["taken for Å", "from masses: H, O"]),
        ("a.lmp", DATA.format("\nMasses\n\n1 1.008\n2 15.999\n"), "HO", ["taken for Å", "from masses: H, O"]),
        ("a.pdb", pdb(("OW", ""), ("HW1", "")), "OH", ["names of atoms: OW O, HW1 H"]),
        ("a.pdb", CELL.format(" 1.000") + pdb(("O", "O")), "O", ["1 x 1 x 1 Å stands for none"]),
        ("a.pdb", CELL.format(" 0.000") + pdb(("O", "O")), "O", ["0 x 0 x 0 Å stands for none"]),
        ("a.gro", gro("OW", "HW1", "Na"), "OHNa", ["OW O, HW1 H, Na Na"]),
    ],
)
def test_told_in_one_line(file, name, content, formula, parts):
    path = file(name, content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (atoms,) = read_structures(path)
    assert str(atoms.symbols) == formula
    messages = [str(warning.message) for warning in told]
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)
    assert all(part in " ".join(messages) for part in parts), messages


def test_cells_of_pdb(file):
    """The cell stands once, before all models; that of 1 x 1 x 1 Å means that there is none."""
    models = pdb(("O", "O"), end="ENDMDL\n") * 2
    for atoms in read_silently(file("a.pdb", CELL.format("10.000") + models)):
        assert atoms.pbc.all() and np.allclose(atoms.cell.lengths(), 10.0)
    with pytest.warns(UserWarning, match="stands for none"):
        for atoms in read_structures(file("a.pdb", CELL.format(" 1.000") + models)):
            assert not atoms.pbc.any() and not atoms.cell.any()


@pytest.mark.parametrize(
    ("box", "length"),
    [("1 1 1\n", 10), ("1 1 1\n\n \n", 10), ("1 1 1 0 0 .2 0 0 0", 10), ("0 0 0\n", 0), ("\n", 0), ("\n\n", 0)],
)
def test_cells_of_gromacs(file, box, length):
    """It stands in the line after the atoms, whatever comes then; blank or of zeros it means that there is none."""
    path = file("a.gro", "".join(gro("OW", "HW1").splitlines(True)[:-1]) + box)
    with pytest.warns(UserWarning, match="elements are guessed"):
        (atoms,) = read_structures(path)
    assert len(atoms) == 2 and atoms.cell[0, 0] == length and (atoms.pbc == (length > 0)).all()


@pytest.mark.parametrize(
    ("name", "content", "charge"),
    [
        ("a.sdf", V2000.format(0) + "M  CHG  1   1  -1\nM  END\n$$$$\n", -1),
        ("a.mol", V2000.format(5) + "M  CHG  2   1  -1   2   1\nM  END\n", 0),  # what M  CHG says comes before
        ("a.mol", V2000.format(5) + "M  END\n", -1),
        ("a.sdf", V2000.format(0) + "M  END\n> <Total Charge>\n-1\n\n$$$$\n", -1),
        ("a.sdf", V2000.format(0) + "M  END\n", None),
        ("a.gjf", GJF.format("-1 1"), -1),
        ("a.com", GJF.format(" 0 2"), 0),
        ("coord", COORD.format("$chrg -1\n", ""), -1),
        ("coord", COORD.format("", "$eht charge=2 unpaired=0\n"), 2),
        ("coord", COORD.format("", "$chrg=+1\n"), 1),
        ("coord", COORD.format("", ""), None),
        ("a.pwi", "&SYSTEM\n tot_charge = -1.0d0 ! e\n ibrav=0, nat=1, ntyp=1\n/\nATOMIC_SPECIES\nO 16 O.UPF\n"
         "CELL_PARAMETERS angstrom\n9 0 0\n0 9 0\n0 0 9\nATOMIC_POSITIONS angstrom\nO 0 0 0\n", -1),
    ],
)  # fmt: skip
def test_charges_that_files_state(file, name, content, charge):
    (atoms,) = read_silently(file(name, content))
    assert atoms.info.get("charge") == charge


def test_charges_of_a_pdb(file):
    """Each model has the sum of its own, which is told."""
    ion = pdb(("NA", "NA"), ("O", "O"), end="ENDMDL\n").replace("NA\n", "NA1+\n")
    path = file("a.pdb", ion + pdb(("CL", "CL")).replace("CL\n", "CL1-\n") + pdb(("O", "O")))
    with pytest.warns(UserWarning, match="columns 79 and 80 .* add up to -1, 1 e"):
        assert [atoms.info.get("charge") for atoms in read_structures(path)] == [1, -1, None]


@pytest.mark.parametrize("name", ["a.xyz", "a.traj", "a.db", "a.json", "POSCAR"])
def test_index(tmp_path, name):
    frames = [molecule("H2O", cell=np.eye(3) * (5 + k), pbc=True) for k in range(1 if name == "POSCAR" else 5)]
    write(tmp_path / name, frames)
    for index in ("0", "-1", "-5", "4", ":", "1:3", "::-1", "-2:", "3:9", "::2", " 1 ", "+1"):
        parts = [int(part) if part.strip() else None for part in index.split(":")]
        chosen = (
            frames[slice(*parts)] if ":" in index else [frames[k] for k in parts if -len(frames) <= k < len(frames)]
        )
        if not chosen:
            continue
        found = read_silently(tmp_path / name, index)
        assert [atoms.cell[0, 0] for atoms in found] == [atoms.cell[0, 0] for atoms in chosen], index
        numbers = [structure_number(atoms, k) for k, atoms in enumerate(found)]
        assert numbers == [round(atoms.cell[0, 0]) - 5 for atoms in chosen], index
    for index in ("5", "-6", "10:20", "99999999999999999999", "-100"):
        with pytest.raises(InputError, match=f"{name}: has no structure {index}"):
            read_structures(tmp_path / name, index)
    for index in ("", "a", "1:2:3:4", "::0", "1.5", "1_0", "all"):
        with pytest.raises(InputError, match=f"index .*'{index}'"):
            read_structures(tmp_path / name, index)


@pytest.mark.parametrize("name", ["a.db", "a.json"])
def test_what_the_rows_of_a_database_state(tmp_path, name):
    with ase.db.connect(tmp_path / name) as database:
        database.write(molecule("H2O"), charge=-1, data={"electric_field": [0, 0, 1], "Total charge": -1, "other": 1})
        database.write(molecule("H2O"))
    first, second = read_silently(tmp_path / name)
    assert first.info["charge"] == -1 and list(first.info["electric_field"]) == [0, 0, 1] and "other" not in first.info
    assert first.info["Total charge"] == -1
    assert second.info == {}


def test_what_is_no_file(tmp_path):
    (tmp_path / "link.xyz").symlink_to(tmp_path / "nowhere.xyz")
    for path, part in {"nowhere.xyz": "no such file", "link.xyz": "a link", ".": "folder", "a\0b": "null"}.items():
        with pytest.raises(InputError, match=part):
            read_structures(tmp_path / path)
    with pytest.raises(InputError, match="/dev/zero: is a device"):
        read_structures("/dev/zero")
    with pytest.raises(InputError, match="File name too long"):
        read_structures(tmp_path / ("a" * 300))


def test_pipe(tmp_path):
    """Its size cannot be seen, and nobody can go back in it."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(WATER * 2000,))
    writer.start()
    assert len(read_silently(tmp_path / "pipe", "1:")) == 1999
    writer.join()


def test_locale_and_standard_input(file):
    """Text is UTF-8 whatever the locale says; "-" is the standard input."""
    path = file("a.xyz", commented('name="Ångström"'))
    code = "from fastlr.reading import *; print(*(ascii(read_structure(p).info['name']) for p in ('-', 'a.xyz')))"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with path.open("rb") as stream:
        options = {"env": ascii_only, "stdin": stream, "cwd": path.parent, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, "-c", code], check=True, **options)
    assert done.stdout.split() == ["'\\xc5ngstr\\xf6m'"] * 2


def test_errors_name_frames_of_the_file(file):
    path = file("a.xyz", WATER + "0\n\nVEC1 5 0 0\nVEC2 0 5 0\nVEC3 0 0 5\n" + WATER * 2)
    assert [str(StructureName(atoms, 0)) for atoms in read_structures(path, "2:")] == [
        "structure 2 (H2O)",
        "structure 3 (H2O)",
    ]
    assert str(StructureName(read_structure(path), 0)) == "structure 3 (H2O)"
    assert str(StructureName(read_structures(path, "-3:")[0], 0)) == "structure 1 (no atoms)"


def test_one_structure(file):
    path = file("a.xyz", WATER * 2)
    assert len(read_structure(path)) == 3
    with pytest.raises(InputError, match="selects 2 structures"):
        read_structure(path, ":")
