"""Both models, all variants: exact derivatives, symmetries, limits. Everything in float64 unless said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell
from ase.data import chemical_symbols, covalent_radii
from fastlr.kernels.charge_solver.naive import solve_charges
from reference import structures
from reference.differences import displaced, numerical_forces, numerical_gradient, numerical_virial, relative_error
from reference.models import LR_MODELS, MODELS, R_MAX, energies, graph_of, predict, small_model
from reference.rotations import random_rotation, rotated

from fastlr.errors import ConfigError
from fastlr.models import build_model, parse_config
from fastlr.models.derivatives import evaluate

every_model = pytest.mark.parametrize("name", MODELS)
lr_models = pytest.mark.parametrize("name", LR_MODELS)


def small_salt() -> Atoms:
    """Two ion pairs in a thin, rattled cell."""
    atoms = structures.salt()[:4]
    atoms.set_cell([[5.6, 0.2, 0.0], [0.3, 5.5, 0.0], [0.1, -0.4, 2.9]])
    atoms.positions[:, 2] %= 2.8
    return atoms


def charged(atoms: Atoms, charge: float) -> Atoms:
    atoms = atoms.copy()
    atoms.info["charge"] = charge
    return atoms


CASES = {
    "water cation": charged(structures.water(), 1.0),
    "neutral salt": small_salt(),
    "charged skewed cell": charged(structures.skewed_cell(), -1.0),
    "one-atom cell": charged(structures.one_atom_cell(), 0.7),
    "charged slab": charged(structures.slab(), 0.5),
}
cases = pytest.mark.parametrize("case", CASES)


class TestDerivatives:
    # 1e-6: the differences err by h^4 = 1e-12 and by rounding, 1e-16 x 10 eV / h = 1e-12
    TOLERANCE = 1e-6

    @cases
    @every_model
    def test_forces(self, name, case):
        model, atoms = small_model(name), CASES[case]
        forces = predict(model, atoms)["forces"]
        if len(atoms) == 1:  # by symmetry; the differences of the energy vanish too
            assert np.abs(forces).max() < 1e-10
            return
        expected = numerical_forces(lambda batch: energies(model, batch), atoms)
        assert relative_error(forces, expected) < self.TOLERANCE
        assert np.abs(forces.sum(axis=0)).max() < 1e-10 * np.abs(forces).max()

    @cases
    @every_model
    def test_stress(self, name, case):
        model, atoms = small_model(name), CASES[case]
        out = predict(model, atoms)
        expected = numerical_virial(lambda batch: energies(model, batch), atoms)
        assert relative_error(out["virial"][0], expected) < self.TOLERANCE
        assert relative_error(out["virial"][0], out["virial"][0].T) < 1e-12
        if atoms.pbc.all():
            assert relative_error(out["stress"][0], expected / atoms.get_volume()) < self.TOLERANCE
        else:
            assert np.isnan(out["stress"]).all()

    @pytest.mark.parametrize("name", ["lr", "lr-separate-no-site"])
    def test_forces_need_the_adjoint(self, name, monkeypatch):
        """Charges taken for constants give forces that the comparison above rejects by far."""

        def without_adjoint(*arguments):
            return tuple(x.detach() for x in solve_charges(*arguments))

        model, atoms = small_model(name), CASES["neutral salt"]
        expected = predict(model, atoms)["forces"]
        monkeypatch.setattr("fastlr.kernels.charge_solver.naive.solve_charges", without_adjoint)
        assert relative_error(predict(model, atoms)["forces"], expected) > 1e3 * self.TOLERANCE

    @pytest.mark.parametrize("name", ["nequip", "lr", "lr-gaussian-no-site"])
    def test_second_derivatives(self, name):
        """gradgradcheck of the energy, and with it the Hessian's symmetry, in positions and strain."""
        model = small_model(name, num_features=[2, 2, 2], radial_width=3, num_bessels=2)
        graph = graph_of(model, charged(structures.wire()[:2], 1.0) if name == "nequip" else CASES["water cation"])

        def energy(positions, strain):
            return model(replace(graph, positions=positions).strained(strain))["energy"]

        leaves = [graph.positions.clone().requires_grad_(True), torch.zeros_like(graph.cell).requires_grad_(True)]
        assert torch.autograd.gradgradcheck(energy, leaves, atol=1e-5)
        hessian = torch.autograd.functional.hessian(lambda x: energy(x, leaves[1]).sum(), leaves[0].detach())
        hessian = hessian.reshape(graph.num_nodes * 3, -1)
        assert relative_error(hessian, hessian.T) < 1e-10

    @pytest.mark.parametrize("name", ["nequip", "lr", "lr-separate-stacks"])
    def test_gradients_of_a_force_loss(self, name):
        """What training needs, for every parameter: along a random direction of each tensor."""
        model = small_model(name, num_features=[3, 2, 2], radial_width=4)
        graph = graph_of(model, [CASES["water cation"], CASES["neutral salt"]])

        def loss() -> torch.Tensor:
            out = evaluate(model, graph, create_graph=True)
            periodic = out["stress"][1]
            total = (out["forces"] ** 2).sum() + (out["energy"] ** 2).sum() + 10.0 * (periodic**2).sum()
            return total + (out["charges"] ** 3).sum() if "charges" in out else total

        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        generator = torch.Generator().manual_seed(1)
        for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if not parameter.numel():
                continue
            assert gradient is not None, key
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            start = parameter.detach().clone()

            def along(step, parameter=parameter, start=start, direction=direction):
                with torch.no_grad():
                    parameter.copy_(start + float(step[0]) * direction)
                return float(loss().detach())

            expected = numerical_gradient(along, np.zeros(1))[0]
            along(np.zeros(1))
            # the loss is of size 100, and its rounding over h about 1e-11
            assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), key


class TestSymmetry:
    @pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])
    @every_model
    def test_rotation(self, name, improper):
        model, rotation = small_model(name), random_rotation(improper)
        atoms = [CASES["water cation"], CASES["neutral salt"], CASES["one-atom cell"], structures.water_cluster()]
        before, after = predict(model, atoms), predict(model, [rotated(one, rotation) for one in atoms])
        matrix = rotation.numpy()
        assert relative_error(after["energy"], before["energy"]) < 1e-12
        assert relative_error(after["forces"], before["forces"] @ matrix.T) < 1e-10
        assert relative_error(after["virial"], matrix @ before["virial"] @ matrix.T) < 1e-10
        if "charges" in before:
            assert relative_error(after["charges"], before["charges"]) < 1e-11
            molecules = [0, 3]
            assert relative_error(after["dipole"][molecules], before["dipole"][molecules] @ matrix.T) < 1e-11
            assert np.isnan(after["dipole"][[1, 2]]).all()

    @every_model
    def test_lattice_translations_and_permutation(self, name, rng):
        model = small_model(name)
        for atoms in (CASES["neutral salt"], CASES["charged skewed cell"]):
            order = rng.permutation(len(atoms))
            moved = atoms[order]
            moved.info = dict(atoms.info)
            moved.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array + [0.3, -1.7, 5.0]
            before, after = predict(model, atoms), predict(model, moved)
            assert relative_error(after["energy"], before["energy"]) < 1e-12
            assert relative_error(after["forces"], before["forces"][order]) < 1e-10
            assert relative_error(after["stress"], before["stress"]) < 1e-10
            if "charges" in before:
                assert relative_error(after["charges"], before["charges"][order]) < 1e-11

    @every_model
    def test_another_cell_of_the_same_lattice(self, name):
        """Unimodular changes of the cell, left-handed ones too."""
        model, atoms = small_model(name), CASES["neutral salt"]
        before = predict(model, atoms)
        for matrix in ([[1, 1, 0], [0, 1, 0], [0, -1, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]):
            other = atoms.copy()
            other.set_cell(np.array(matrix) @ atoms.cell.array)
            after = predict(model, other)
            # 1e-9: the tables of the Coulomb sum are cut elsewhere, at 1e-10
            assert relative_error(after["energy"], before["energy"]) < 1e-9
            assert relative_error(after["forces"], before["forces"]) < 1e-8

    @every_model
    def test_translation_of_a_molecule(self, name):
        model, atoms = small_model(name), structures.water()
        moved = atoms.copy()
        moved.positions += [10.3, -4.0, 2.2]
        before, after = predict(model, atoms), predict(model, moved)
        assert relative_error(after["energy"], before["energy"]) < 1e-13
        assert relative_error(after["forces"], before["forces"]) < 1e-11
        if "dipole" in before:  # of a neutral molecule: the origin does not matter
            assert relative_error(after["dipole"], before["dipole"]) < 1e-11

    @every_model
    def test_extensivity(self, name):
        model, atoms = small_model(name), CASES["neutral salt"]
        double = make_supercell(atoms, [[1, 0, 0], [0, 1, 0], [1, 0, 2]])
        before, after = predict(model, atoms), predict(model, double)
        assert relative_error(after["energy"], 2.0 * before["energy"]) < 1e-8
        assert relative_error(after["stress"], before["stress"]) < 1e-7
        if "charges" in before:
            copies = [after["charges"][np.argmin(self._distances(double, r))] for r in atoms.positions]
            assert relative_error(np.array(copies), before["charges"]) < 1e-8

    @staticmethod
    def _distances(atoms, position):
        probe = atoms.copy() + Atoms("H", [position])
        return probe.get_distances(len(atoms), range(len(atoms)), mic=True)


class TestBatches:
    @every_model
    def test_equal_their_members(self, name):
        model = small_model(name)
        makers = {**structures.MOLECULES, **structures.CELLS, "slab": structures.slab}
        if name not in LR_MODELS:
            makers |= {"wire": structures.wire}
        atoms = [make() for make in makers.values()] + list(CASES.values())
        batch = predict(model, atoms)
        graph = graph_of(model, atoms)
        for b, one in enumerate(atoms):
            single = predict(model, one)
            nodes = slice(graph.node_ptr[b], graph.node_ptr[b + 1])
            for key, value in single.items():
                per_atom = len(value) == len(one) and key in (
                    "forces",
                    "charges",
                    "atomic_energies",
                    "electronegativities",
                )
                mine = batch[key][nodes] if per_atom else batch[key][b]
                value = value if per_atom else value[0] if len(value) else value
                scale = max(1.0, float(np.nanmax(np.abs(value), initial=0.0)))
                np.testing.assert_allclose(mine, value, rtol=0.0, atol=1e-12 * scale, equal_nan=True, err_msg=key)

    @lr_models
    def test_total_charge(self, name):
        model = small_model(name)
        totals = [0.0, 1.0, -2.5, 3.0]
        atoms = [structures.water_cluster(), structures.salt(), structures.skewed_cell(), structures.isolated_atom()]
        atoms[0].info.clear()
        graph = graph_of(model, atoms, totals)
        charges = model(graph)["charges"].detach()
        np.testing.assert_allclose(graph.sum_nodes(charges), totals, rtol=0.0, atol=1e-10)
        assert charges.abs().max() > 0.1


class TestLimits:
    @pytest.mark.parametrize("name", [name for name in MODELS if name not in LR_MODELS])
    def test_isolated_atom_has_its_shift(self, name):
        out = predict(small_model(name), structures.isolated_atom())
        assert out["energy"] == [-3.1]
        assert not out["forces"].any()

    @lr_models
    def test_isolated_ion(self, name):
        """Alone, the charge is the total charge, and the Coulomb energy the Gaussian's own."""
        model = small_model(name)
        out = predict(model, structures.isolated_atom(), 2.0)
        assert out["charges"] == pytest.approx([2.0], abs=1e-13)
        width = float(model.equilibration.widths[1])
        assert out["coulomb_energy"] == pytest.approx([0.5 * 14.399645478 * 4.0 / (width * np.sqrt(np.pi))])
        assert np.abs(out["forces"]).max() < 1e-12

    @every_model
    def test_empty_structures(self, name):
        model = small_model(name)
        for atoms in (structures.empty(), Atoms(cell=[3.0, 4.0, 5.0], pbc=True)):
            out = predict(model, atoms)
            assert out["energy"] == [0.0]
            assert out["forces"].shape == (0, 3)

    @every_model
    def test_far_fragments(self, name):
        """Beyond the cutoff NequIP is additive; NequIP-LR sees the Coulomb tail alone."""
        model = small_model(name)
        first, second = structures.water(), structures.salt()[:3]
        second.pbc = False

        def pair(distance):
            moved = second.copy()
            moved.positions += [distance, 0.0, 0.0]
            return first + moved

        if name in LR_MODELS:
            # charge moves between fragments however far (a known property of charge equilibration), and the rest
            # falls as 1 / R: E = a + b / R + O(R^-2)
            e1, e2, e4 = energies(model, [pair(1e4), pair(2e4), pair(4e4)])
            assert (e1 - e2) == pytest.approx(2.0 * (e2 - e4), rel=1e-2)
            assert abs(e1 - e2) > 1e-7
        else:
            separate = energies(model, [first, second]).sum()
            assert energies(model, pair(50.0))[0] == pytest.approx(separate, rel=1e-13)

    @every_model
    def test_smooth_across_the_cutoff(self, name):
        """Energy and forces follow one smooth curve as an atom leaves the sphere of another."""
        model = small_model(name)
        water = structures.water()

        def approach(distance):
            return water + Atoms("Na", [water.positions[0] + [0.0, 0.0, distance]])

        h = 1e-3
        distances = R_MAX + h * np.arange(-4, 5)
        batch = [approach(distance) for distance in distances]
        assert len({graph_of(model, atoms).num_edges for atoms in batch}) > 1
        out = predict(model, batch)
        # the envelope has two continuous derivatives: third differences are of order h^3
        assert np.abs(np.diff(out["energy"], n=3)).max() < 1e3 * h**3
        force = out["forces"].reshape(len(batch), -1, 3)[:, -1, 2]
        assert np.abs(np.diff(force, n=2)).max() < 1e3 * h**2
        slope = -np.gradient(out["energy"], h)[1:-1]
        assert np.abs(slope - force[1:-1]).max() < 1e2 * h**2

    @lr_models
    def test_no_jumps_from_the_coulomb_tables(self, name):
        """Pairs enter and leave the real-space sum; the energy must not show it beyond the accuracy asked for."""
        model, atoms = small_model(name), CASES["neutral salt"]
        h = 2e-3
        batch = []
        for step in range(41):
            moved = atoms.copy()
            moved.positions[0, 0] += step * h
            batch.append(moved)
        assert len({len(graph_of(model, one).coulomb.neighbour) for one in batch}) > 1
        # a smooth curve has fourth differences of order h^4 = 2e-11; a jump of 1e-7 eV would stand out
        assert np.abs(np.diff(energies(model, batch), n=4)).max() < 2e-8

    @every_model
    def test_float32_is_close(self, name):
        double = small_model(name)
        single = build_model(parse_config(double.config.model_dump() | {"dtype": "float32"}))
        single.load_state_dict(double.state_dict())
        assert {p.dtype for p in single.stack.parameters()} == {torch.float32} if hasattr(single, "stack") else True
        atoms = [structures.water_cluster(), structures.salt(), structures.skewed_cell()]
        expected, out = predict(double, atoms), predict(single, atoms)
        assert out["energy"].dtype == np.float64
        assert relative_error(out["energy"], expected["energy"]) < 1e-6
        assert 0.0 < relative_error(out["forces"], expected["forces"]) < 1e-5

    @lr_models
    def test_hardness_is_positive(self, name):
        model = small_model(name)
        np.testing.assert_allclose(model.equilibration.hardness.detach(), [5.0, 6.0, 3.0, 4.0], rtol=1e-14)
        with torch.no_grad():
            model.equilibration.log_hardness.copy_(torch.tensor([-30.0, -3.0, 0.0, 7.0]))
        assert (model.equilibration.hardness > 0.0).all()
        assert np.isfinite(predict(model, structures.salt())["energy"]).all()


@every_model
def test_default_float_type_does_not_matter(name):
    """Other packages set it globally; a float32 model stays one."""
    expected = small_model(name, dtype="float32")
    torch.set_default_dtype(torch.float64)
    try:
        model = small_model(name, dtype="float32")
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in model.state_dict().items():
        assert value.dtype == expected.state_dict()[key].dtype, key


@lr_models
def test_graph_without_tables_is_refused(name):
    model = small_model(name)
    graph = replace(graph_of(model, structures.water()), coulomb=None)
    with pytest.raises(ValueError, match="no Coulomb tables"):
        model(graph)


def test_displaced_covers_every_coordinate():
    """The helper itself: 4 steps for each of 9 coordinates."""
    assert len(displaced(structures.water(), 1e-3)) == 36


def test_default_widths():
    """Covalent radii as ASE lists them too, and none where none is known."""
    symbols = chemical_symbols[1:97]
    config = parse_config({"kind": "nequip-lr", "species": symbols})
    np.testing.assert_allclose(config.widths, covalent_radii[1:97], rtol=1e-12)
    with pytest.raises(ConfigError, match="gaussian_widths: needs one for Bk, of which no covalent radius is known"):
        parse_config({"kind": "nequip-lr", "species": ["H", "Bk"]})
    assert parse_config({"kind": "nequip-lr", "species": ["Bk"], "gaussian_widths": 1.7}).widths == [1.7]
