"""The total charge, from wherever a structure or the caller states it, and what is refused or warned of."""

import io
import warnings

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from reference import models, structures

from fastlr import total_charge as module
from fastlr.errors import InputError
from fastlr.potential import Potential
from fastlr.simulation.dynamics import MDSettings, run_md
from fastlr.simulation.relaxation import relax
from fastlr.stated_names import CHARGE_NAMES
from fastlr.total_charge import stated_charge, total_charge


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    monkeypatch.setattr(module, "_warned", set())


def reference_of(name):
    return Potential(models.small_model(name), backend="reference")


def stating(**info):
    atoms = structures.water()
    atoms.info = info
    return atoms


def with_initial_charges(charges, **info):
    atoms = stating(**info)
    atoms.set_initial_charges(charges)
    return atoms


@pytest.mark.parametrize(
    "key", ["charge", "total_charge", "Total Charge", "totalCharge", "net-charge", *sorted(CHARGE_NAMES)]
)
def test_every_name_is_read(key):
    assert total_charge(stating(**{key: -1})) == -1.0
    assert total_charge(stating(**{key: None}), 1) == 1.0


@pytest.mark.parametrize("key", ["charges", "charge_state_energy", "chargemol", "recharge", 3, ("charge",)])
def test_other_names_are_not(key):
    atoms = structures.water()
    atoms.info[key] = 1
    assert stated_charge(atoms) is None


def test_two_names_may_agree_and_not_differ():
    assert total_charge(stating(charge=1, total_charge=1.0)) == 1.0
    message = (
        r"structure 4 \(H2O\): atoms.info\['charge'\] says a total charge of 1 e, but atoms.info\['total_charge'\] 0"
    )
    with pytest.raises(InputError, match=message):
        stated_charge(stating(charge=1, total_charge=0), index=4)


@pytest.mark.parametrize(
    ("charges", "total"), [([1.0, 0.0, 0.0], 1), ([-0.834, 0.417, 0.417], 0), ([0.5, 0.24999, 0.25], 1)]
)
def test_initial_charges_state_their_sum(charges, total):
    assert stated_charge(with_initial_charges(charges)) == total
    assert stated_charge(with_initial_charges(charges, charge=total)) == total
    assert stated_charge(with_initial_charges(charges), total) == total
    text = io.StringIO()
    ase.io.write(text, with_initial_charges(charges), format="extxyz")
    assert stated_charge(ase.io.read(io.StringIO(text.getvalue()), format="extxyz")) == total


def test_zero_initial_charges_state_nothing():
    assert stated_charge(with_initial_charges([0.0, 0.0, 0.0])) is None
    assert stated_charge(with_initial_charges([0.0, 0.0, 0.0], charge=1)) == 1.0


@pytest.mark.parametrize(
    ("atoms", "default", "message"),
    [
        (with_initial_charges([1, 0, 0], charge=0), None, r"info\['charge'\] says .* 0 e, but the sum of its initial"),
        (with_initial_charges([1, 0, 0], total_charge=-1), None, r"info\['total_charge'\] says .* -1 e"),
        (with_initial_charges([1, 0, 0]), 0, "the argument 'charge' says a total charge of 0 e, but the sum"),
        (with_initial_charges([0.4, 0, 0]), None, r"add up to 0\.4 e, which is no whole number"),
        (with_initial_charges([np.nan, 0, 0]), None, "add up to nan e"),
        (with_initial_charges([np.inf, 0, 0], charge=0), None, "the sum of its initial charges inf e"),
        (with_initial_charges([40, 0, 0]), None, "a charge of 40 e is more than its neutral atoms have electrons"),
        (stating(total_charge="+1"), None, r"must be a finite number, got '\+1' as atoms.info\['total_charge'\]"),
        (stating(charge=np.array([1.0, 0.0, 0.0])), None, "must be a finite number"),
        (stating(chemical_potential=1.0, total_charge=1), None, "both a chemical potential and a charge of 1 e"),
    ],
)
def test_contradictions_are_errors(atoms, default, message):
    with pytest.raises(InputError, match=message):
        total_charge(atoms, default)


def test_a_cation_is_no_neutral_molecule():
    potential = reference_of("lr")
    cation = potential.predict(structures.water(), 1)
    for atoms in (stating(total_charge=1), with_initial_charges([1, 0, 0])):
        found = [potential.predict(atoms), potential.predict([atoms, structures.water()])[0]]
        calculated = structures.water()
        calculated.info, calculated.arrays = dict(atoms.info), dict(atoms.arrays)
        calculated.calc = potential.calculator()
        for prediction in found:
            assert prediction.energy == cation.energy
            assert prediction.total_charge == 1.0
        assert calculated.get_potential_energy() == pytest.approx(cation.energy, abs=1e-9)


def labelled(charges, **info):
    atoms = stating(**info)
    atoms.calc = SinglePointCalculator(atoms, charges=np.array(charges))
    return atoms


@pytest.mark.parametrize("way", [lambda p, a: p.predict(a), lambda p, a: p.predict([a, a])])
def test_charges_that_come_with_a_structure_are_not_ignored(way):
    """As those of published data, which often state no total charge."""
    potential, short_range = reference_of("lr"), reference_of("nequip")
    cation = [0.2, 0.4, 0.4]
    with pytest.raises(
        InputError, match=r"structure 0 \(H2O\): its charge labels add up to 1 e, but it states no total"
    ):
        way(potential, labelled(cation))
    for atoms in (labelled(cation, charge=1), labelled(cation, charge=0), labelled([-0.401, 0.2, 0.2])):
        way(potential, atoms)
    way(short_range, labelled(cation))
    assert potential.predict(labelled(cation), 0).total_charge == 0.0
    with pytest.raises(InputError, match="its charge labels add up to nan e"):
        way(potential, labelled([np.nan, 0, 0]))


@pytest.mark.parametrize("key", ["charges", "charge", "formal_charges", "mulliken_charges", "Bader_charge"])
def test_charges_in_arrays_are_not_ignored(key):
    atoms = structures.water()
    atoms.set_array(key, np.array([0.3, 0.3, 0.4]))
    potential = reference_of("lr")
    with pytest.raises(InputError, match=rf"its atoms.arrays\['{key}'\] add up to 1 e, but it states no total charge"):
        potential.predict([atoms, atoms])
    assert potential.predict(atoms, 1).total_charge == 1.0


def test_the_charge_of_a_calculator_is_not_dropped(tmp_path):
    potential = reference_of("lr")
    atoms = structures.water()
    atoms.calc = potential.calculator(charge=1)
    ways = [
        lambda: potential.predict(atoms),
        lambda: relax(atoms, potential, steps=1),
        lambda: run_md(atoms, potential, MDSettings(1), tmp_path / "r.extxyz"),
    ]
    for way in ways:
        with pytest.raises(InputError, match="its calculator has a charge of 1 e, but it states no total charge"):
            way()
    relax(atoms, potential, charge=1, steps=1)
    with pytest.raises(InputError, match="has a charge of 1 e"):
        potential.predict(atoms)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Electric_Field", "electric_field"),
        ("efield", "electric_field"),
        ("chemical potential", "chemical_potential"),
        ("fragment_charges", "fragment_charge"),
    ],
)
def test_conditions_of_other_spelling_are_refused(key, name):
    with pytest.raises(InputError, match=f"'{key}' is not read; call it '{name}'"):
        stated_charge(stating(**{key: [0, 0, 0]}))


@pytest.mark.parametrize(("key", "name"), [("Fragment", "fragment"), ("external_potentials", "external_potential")])
def test_conditions_of_other_spelling_in_arrays_are_refused(key, name):
    atoms = structures.water()
    atoms.set_array(key, np.zeros(3))
    with pytest.raises(InputError, match=f"'{key}' is not read; call it '{name}'"):
        reference_of("lr").predict([atoms, atoms])


@pytest.mark.parametrize(
    "field",
    [np.ma.array([0, 0, 0.1], mask=[0, 0, 1]), [True, 0, 0], [0, 0, 1e6], ["0", "0", "1"], [0, 0, 1j], [0, np.nan, 0]],
)
def test_fields_that_are_none(field):
    with pytest.raises(InputError, match=r"'electric_field' (must be 3 numbers|is larger than 50)"):
        total_charge(stating(electric_field=field))


@pytest.mark.parametrize("charges", [[1j, 0, 0], ["a", "b", "c"]])
def test_initial_charges_that_are_no_numbers(charges):
    atoms = structures.water()
    atoms.arrays["initial_charges"] = np.array(charges)
    with pytest.raises(InputError, match="its initial charges are no numbers"):
        stated_charge(atoms)


def test_initial_charges_have_few_digits():
    waters = [with_initial_charges([-0.82, 0.42, 0.42], charge=0)]
    assert stated_charge(waters[0]) == 0.0


@pytest.mark.parametrize("charge", [[[1, 2], [3]], [np.array([1, 0]), 0]])
def test_lists_of_charges_that_are_none(charge):
    with pytest.raises(InputError, match="the charge must be a finite number"):
        reference_of("lr").predict([structures.water()] * 2, charge)


class TestFragments:
    """Charges of fragments."""

    @staticmethod
    def fragments(charge, labels=(0, 1, 1)):
        atoms = stating(fragment_charge=charge)
        atoms.set_array("fragment", np.array(labels))
        return atoms

    @pytest.mark.parametrize("charge", [{0: 1, 1: -2}, {"0": 1, "1": -2}, {np.int64(0): 1.0, 1.0: -2}, [1, -2]])
    def test_numbers_of_any_kind_name_them(self, charge):
        assert total_charge(self.fragments(charge)) == -1.0

    def test_extended_xyz_keeps_dictionaries(self):
        atoms = self.fragments({3: 1.0, 10: -2.0}, (10, 3, 3))
        text = io.StringIO()
        ase.io.write(text, atoms, format="extxyz")
        again = ase.io.read(io.StringIO(text.getvalue()), format="extxyz")
        potential = reference_of("lr")
        expected, found = potential.predict(atoms), potential.predict(again)
        assert found.total_charge == expected.total_charge == -1.0
        np.testing.assert_allclose(found.charges, expected.charges, atol=1e-6)
        assert found.charges[0] == pytest.approx(-2.0, abs=1e-6)

    @pytest.mark.parametrize(
        ("charge", "message"),
        [
            ({0: 1, "0": 1, 1: 0}, "fragment 0 stands twice"),
            ({"a": 1, 1: 0}, "names a fragment 'a', which is no whole number"),
            ({0.5: 1, 1: 0}, r"names a fragment 0\.5"),
            ({0: 1}, "fragment 1 has either no atom or no charge"),
            ({0: "1", 1: 0}, "must be 2 numbers"),
            ([True, False], "must be 2 numbers"),
            ({0: 9, 1: -9}, "fragment 0: a charge of 9 e is more than its neutral atoms have electrons, which are 8"),
            ({0: 8, 1: -9}, "fragment 1: a charge of -9 e"),
        ],
    )
    def test_faults_are_named(self, charge, message):
        with pytest.raises(InputError, match=message):
            total_charge(self.fragments(charge))

    def test_none_states_nothing(self):
        atoms = stating(fragment_charge=None, electric_field=None, chemical_potential=None, charge=1)
        assert total_charge(atoms) == 1.0

    @pytest.mark.parametrize("key", ["fragment", "external_potential"])
    def test_in_the_wrong_place(self, key):
        with pytest.raises(InputError, match=rf"'{key}' is in atoms.info, but belongs in atoms.arrays"):
            total_charge(stating(**{key: [0, 0, 0]}))

    def test_in_the_other_wrong_place(self):
        atoms = structures.water()
        atoms.set_array("electric_field", np.zeros((3, 3)))
        potential = reference_of("lr")
        with pytest.raises(InputError, match=r"'electric_field' is in atoms.arrays, but belongs in atoms.info"):
            potential.predict([atoms, atoms])

    @pytest.mark.parametrize("value", [torch.tensor([0.0, 0.0, 0.1], requires_grad=True), np.array([0, 0, 1])])
    def test_fields_may_be_tensors(self, value):
        total_charge(stating(electric_field=value))


@pytest.mark.parametrize(
    "state", [{"spin": 1}, {"spin": 3}, {"multiplicity": 2}, {"Spin_Multiplicity": 3}, {"spin": "a"}]
)
def test_spins_are_warned_of_once(state):
    with pytest.warns(UserWarning, match="on which no model of fastlr depends"):
        stated_charge(stating(**state))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stated_charge(stating(**state))


@pytest.mark.parametrize("state", [{"spin": 0}, {"spin": None}, {"multiplicity": 1}, {"spin_constant": 2}, {}])
def test_without_spin_nothing_is_said(state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stated_charge(stating(**state))


def test_magnetic_moments_are_warned_of():
    atoms = structures.water()
    atoms.set_initial_magnetic_moments([1, 0, 0])
    with pytest.warns(UserWarning, match="initial_magmoms"):
        stated_charge(atoms)


def test_models_without_charges_say_so_once():
    potential = reference_of("nequip")
    for structure in (structures.water(), structures.salt()):
        module._warned.clear()
        with pytest.warns(
            UserWarning, match="a charge of 1 e, on which this model, one without charges, does not depend"
        ):
            potential.predict(structure, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.predict([structures.water()] * 2, 1)
        module._warned.clear()
        potential.predict(structures.water(), 0)
    with pytest.warns(UserWarning, match=r"structure 1 \(H2O\)"):
        potential.predict([structures.water(), stating(charge=1)])
