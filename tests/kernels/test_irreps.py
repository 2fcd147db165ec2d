"""Irreps: as e3nn reads, writes and sorts them."""

import copy
import pickle

import pytest
from e3nn import o3
from fastlr.kernels.irreps import Irrep, Irreps
from fastlr.kernels.irreps_linear.layout import Layout
from fastlr.kernels.tensor_product.program import Program

from fastlr.nn.gate import Gate

TEXTS = [
    "",
    "0e",
    "1o + 2 x 2e",
    "128x0e+64x1o+32x2e+32x3o",
    "2o+1e+0e+0o+1o+1e+0x2e+3x0e",
    "1y+3x2y",
    "0x0e+2x0e+0x0e+3x0e+0x1o",
    "12x11o+5x10e",
]


@pytest.mark.parametrize("text", TEXTS)
def test_as_e3nn(text):
    ours, theirs = Irreps(text), o3.Irreps(text)
    assert str(ours) == repr(ours) == str(theirs)
    assert (ours.dim, ours.slices()) == (theirs.dim, theirs.slices())
    assert str(ours.simplify()) == str(theirs.simplify())
    assert str(ours.sort()) == str(theirs.sort().irreps)
    assert str(ours.sort().simplify()) == str(theirs.sort().irreps.simplify())
    assert str(ours + Irreps("1o") + ours) == str(theirs + o3.Irreps("1o") + theirs)
    assert [(mul, str(ir), ir.dim) for mul, ir in ours] == [(mul, str(ir), ir.dim) for mul, ir in theirs]
    assert [entry.dim for entry in ours] == [entry.dim for entry in theirs]


def test_all_products():
    texts = [f"{l}{p}" for l in range(4) for p in "eo"]
    for a in texts:
        for b in texts:
            assert list(map(str, Irrep.parse(a) * Irrep.parse(b))) == list(map(str, o3.Irrep(a) * o3.Irrep(b)))
    assert str(Irreps.spherical_harmonics(4)) == str(o3.Irreps.spherical_harmonics(4))


def test_ways_to_say_it():
    irreps = Irreps("3x0e+2x1o")
    for same in (irreps, str(irreps), [(3, "0e"), (2, (1, -1))], (*irreps,), o3.Irreps("3x0e+2x1o"), [*irreps]):
        assert Irreps(same) == irreps and hash(Irreps(same)) == hash(irreps) and type(Irreps(same)) is Irreps
    assert Irreps(o3.Irrep("1o")) == Irreps(Irrep(1, -1)) == Irreps("1x1o") != Irreps("1x1e")
    assert irreps != Irreps("2x1o+3x0e") and {*irreps} == {*Irreps("2x1o+3x0e")}
    assert irreps[0].mul == 3 and irreps[1].ir in {Irrep.parse("1o")} and irreps[1].ir == o3.Irrep("1o")
    for again in (copy.deepcopy(irreps), pickle.loads(pickle.dumps(irreps))):
        assert again == irreps and type(again) is Irreps and again.dim == 9


def test_irreps_of_e3nn_are_taken():
    """Where irreps are asked for, those of e3nn do as well."""
    x, y, z = "3x0e+2x1o", "0e+1o+2e", "0e+1o+1e"
    program = Program(*map(o3.Irreps, (x, y, z)))
    assert program == Program(x, y, z) == Program.from_key(program.key)
    assert program.key == "3x0e+2x1o | 1x0e+1x1o+1x2e | 1x0e+1x1o+1x1e"
    assert Layout.of(o3.Irreps(x), o3.Irreps(z)) == Layout.of(x, z)
    assert Gate(o3.Irreps(x)).layout == Gate(x).layout


@pytest.mark.parametrize(
    "wrong",
    ["1x", "x0e", "0", "1a", "-1x0e", "-1o", "1x0e+", "1x2x0e", "1.5x0e", [(1, (-1, 1))], [(1, (1, 2))], [(-1, "0e")],
     [(1.5, "0e")], [("0e", 1)], ["0e"], [(1, "3x0e")], [(1, "0e", 2)], None, 3],
    ids=str,
)  # fmt: skip
def test_what_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="as irreps, which are written like"):
        Irreps(wrong)
