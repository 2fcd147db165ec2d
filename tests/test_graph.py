"""Graphs: neighbours, order, batches, and faults of the input."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from reference import structures
from reference.neighbours import brute_force_edges
from reference.structures import SPECIES, STRUCTURES

from fastlr.errors import InputError
from fastlr.graph import CoulombSettings, Graph
from fastlr.total_charge import total_charge

COULOMB = CoulombSettings((0.4, 0.7, 1.6, 1.0), accuracy=1e-6)
every_structure = pytest.mark.parametrize("atoms", [make() for make in STRUCTURES.values()], ids=STRUCTURES.keys())


def edges_of(graph: Graph) -> dict:
    """{(i, j, n_a, n_b, n_c): vector} of a graph."""
    keys = torch.cat([graph.edge_index.T, graph.edge_shift.long()], dim=1).tolist()
    edges = dict(zip(map(tuple, keys), graph.edge_vectors().numpy(), strict=True))
    assert len(edges) == graph.num_edges  # none twice
    return edges


def assert_same_edges(graph: Graph, atoms: Atoms, r_max: float):
    expected = brute_force_edges(atoms.positions, graph.cell[0].numpy(), atoms.pbc, r_max)
    edges = edges_of(graph)
    assert edges.keys() == expected.keys()
    for key, vector in expected.items():
        np.testing.assert_allclose(edges[key], vector, rtol=0.0, atol=1e-12)


def assert_well_ordered(graph: Graph):
    destination, source = graph.edge_index
    assert (destination[1:] >= destination[:-1]).all()
    assert graph.row_ptr[0] == 0
    assert torch.equal(graph.row_ptr.diff(), torch.bincount(destination, minlength=graph.num_nodes))
    reverse = graph.reverse_edge
    assert torch.equal(reverse[reverse], torch.arange(graph.num_edges))
    assert torch.equal(destination[reverse], source)
    assert torch.equal(graph.edge_shift[reverse], -graph.edge_shift)
    vectors = graph.edge_vectors()
    torch.testing.assert_close(vectors[reverse], -vectors, rtol=0.0, atol=1e-12)


def assert_equal_graphs(a: Graph, b: Graph):
    for name in Graph.__dataclass_fields__:
        one, other = getattr(a, name), getattr(b, name)
        if name == "coulomb" and one is not None:
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        elif one is None or other is None:
            assert one is other, name
        else:
            assert torch.equal(one, other), name


class TestEdges:
    @pytest.mark.parametrize("r_max", [2.1, 3.7, 6.3])
    @every_structure
    def test_agree_with_brute_force(self, atoms, r_max):
        graph = Graph.from_atoms(atoms, SPECIES, r_max)
        assert_same_edges(graph, atoms, r_max)
        assert_well_ordered(graph)

    @pytest.mark.parametrize("seed", range(12))
    def test_random_cells(self, seed):
        """Skewed cells of either hand, atoms far outside, every combination of periodic directions."""
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 7))
        cell = rng.uniform(2.5, 6.0) * (np.eye(3) + 0.5 * rng.uniform(-1.0, 1.0, (3, 3)))[rng.permutation(3)]
        pbc = [bool(seed & 1), bool(seed & 2), bool(seed & 4)] if seed < 8 else [True] * 3
        fractions = rng.permutation(64)[:n, None] // [1, 4, 16] % 4 / 4.0  # apart, on a grid
        fractions = fractions + rng.uniform(0.0, 0.1, (n, 3)) + rng.integers(-5, 6, (n, 3)) * np.array(pbc)
        atoms = Atoms("H" * n, fractions @ cell, cell=cell, pbc=pbc)
        graph = Graph.from_atoms(atoms, SPECIES, 4.1)
        assert_same_edges(graph, atoms, 4.1)
        assert_well_ordered(graph)

    def test_count_in_a_crystal(self):
        """12 neighbours at a / sqrt2 in a face-centred cubic one-atom cell, whichever cell vectors describe it."""
        primitive = bulk("Na", "fcc", a=4.0)
        for matrix in (
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[1, 3, 0], [0, 1, 0], [2, 0, 1]],
            [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
        ):
            graph = Graph.from_atoms(make_supercell(primitive, matrix), SPECIES, 3.0)
            assert graph.num_edges == 12

    @pytest.mark.parametrize("r_max", [2.0 * np.sqrt(2.0), 4.0, 4.0 * np.sqrt(1.5)], ids="{:.3f}".format)
    def test_pairs_at_the_cutoff_come_in_twos(self, r_max):
        """In a perfect crystal whole shells lie within rounding of the cutoff."""
        atoms = make_supercell(bulk("Na", "fcc", a=4.0), [[1, 2, 0], [0, 1, 1], [1, 0, 2]])
        atoms.positions += [0.1, 1e3 / 3.0, -0.7]
        assert_well_ordered(Graph.from_atoms(atoms, SPECIES, r_max))

    def test_far_unwrapped_atoms(self):
        """An atom that has drifted through many cells has the edges of its image."""
        atoms = structures.skewed_cell()
        drifted = atoms.copy()
        drifted.positions[1] += np.array([3000, -2000, 4000]) @ atoms.cell.array
        graph, expected = (Graph.from_atoms(one, SPECIES, 3.7) for one in (drifted, atoms))
        assert graph.num_edges == expected.num_edges
        assert_well_ordered(graph)
        lengths = [g.edge_vectors().norm(dim=1).sort().values for g in (graph, expected)]
        torch.testing.assert_close(*lengths, rtol=0.0, atol=1e-9)

    @pytest.mark.parametrize(
        "make", [structures.water, structures.slab, structures.wire], ids=["water", "slab", "wire"]
    )
    def test_empty_directions_mean_nothing(self, make):
        """The cell vector of a direction that is not periodic has no effect."""
        atoms = make()
        spoilt = atoms.copy()
        cell = atoms.cell.array.copy()
        for axis in np.flatnonzero(~atoms.pbc):
            cell[axis] = ([0.3, 1e-7, 1.0], [0.01, 0.0, 0.0], [5.0, 5.0, 5.0])[axis]
        if not atoms.pbc.any():
            cell[0] = np.nan
        spoilt.set_cell(cell)
        spoilt.pbc = atoms.pbc
        edges = [edges_of(Graph.from_atoms(one, SPECIES, 3.7)) for one in (atoms, spoilt)]
        assert edges[0].keys() == edges[1].keys()

    def test_vectors_are_differentiable(self):
        from dataclasses import replace

        graph = Graph.from_atoms(structures.skewed_cell(), SPECIES, 2.9)

        def vectors(positions, cell):
            return replace(graph, positions=positions, cell=cell).edge_vectors()

        leaves = [x.clone().requires_grad_(True) for x in (graph.positions, graph.cell)]
        assert torch.autograd.gradcheck(vectors, leaves)

    def test_strain_moves_edges_alike(self):
        graph = Graph.from_atoms([structures.skewed_cell(), structures.water()], SPECIES, 3.7)
        strain = 0.1 * torch.randn(2, 3, 3, dtype=torch.float64)
        symmetric = 0.5 * (strain + strain.transpose(1, 2))
        expected = graph.edge_vectors()
        structure = graph.batch[graph.edge_index[0]]
        expected = expected + torch.einsum("ea,eab->eb", expected, symmetric[structure])
        torch.testing.assert_close(graph.strained(strain).edge_vectors(), expected, rtol=0.0, atol=1e-12)


SERVED = {**structures.MOLECULES, **structures.CELLS, "slab": structures.slab}


class TestBatches:
    @pytest.mark.parametrize("coulomb", [None, COULOMB], ids=["short range", "coulomb"])
    def test_equal_their_members(self, coulomb):
        makers = {**SERVED, **(structures.PARTLY_PERIODIC if coulomb is None else {})}
        atoms = [make() for make in makers.values()]
        graph = Graph.from_atoms(atoms, SPECIES, 3.7, coulomb)
        assert graph.num_structures == len(atoms)
        assert graph.max_atoms == max(map(len, atoms))
        assert_well_ordered(graph)
        assert torch.equal(graph.node_ptr, torch.tensor([0, *np.cumsum([len(a) for a in atoms])]))
        for b, one in enumerate(atoms):
            single = Graph.from_atoms(one, SPECIES, 3.7, coulomb)
            nodes = slice(graph.node_ptr[b], graph.node_ptr[b + 1])
            edges = slice(graph.row_ptr[nodes.start], graph.row_ptr[nodes.stop])
            assert (graph.batch[nodes] == b).all()
            assert torch.equal(graph.slot[nodes], torch.arange(len(one)))
            assert torch.equal(graph.positions[nodes], single.positions)
            assert torch.equal(graph.species[nodes], single.species)
            assert torch.equal(graph.edge_index[:, edges] - nodes.start, single.edge_index)
            assert torch.equal(graph.edge_shift[edges], single.edge_shift)
            assert torch.equal(graph.reverse_edge[edges] - edges.start, single.reverse_edge)
            torch.testing.assert_close(graph.edge_vectors()[edges], single.edge_vectors(), rtol=0.0, atol=0.0)
            for name in ("cell", "pbc", "charge"):
                assert torch.equal(getattr(graph, name)[b], getattr(single, name)[0])

    def test_join_batches_of_batches(self):
        atoms = [make() for make in SERVED.values()]
        parts = [Graph.from_atoms(part, SPECIES, 3.7, COULOMB) for part in (atoms[:2], atoms[2:5], atoms[5:])]
        assert_equal_graphs(Graph.batch_of(parts), Graph.from_atoms(atoms, SPECIES, 3.7, COULOMB))

    def test_one_without_tables_takes_them_from_all(self):
        plain = Graph.from_atoms(structures.water(), SPECIES, 3.7)
        assert Graph.batch_of([Graph.from_atoms(structures.salt(), SPECIES, 3.7, COULOMB), plain]).coulomb is None

    def test_nothing(self):
        with pytest.raises(InputError, match="no structures"):
            Graph.from_atoms([], SPECIES, 3.7)

    def test_to(self):
        graph = Graph.from_atoms([structures.water(), structures.skewed_cell()], SPECIES, 3.7, COULOMB)
        assert_equal_graphs(graph.to("cpu"), graph)
        moved = graph.to("meta")
        others = ("coulomb", "conditions", "memory")
        tensors = [getattr(moved, name) for name in Graph.__dataclass_fields__ if name not in others]
        tensors += [getattr(moved.coulomb, name) for name in moved.coulomb._fields]
        assert all(tensor.device.type == "meta" for tensor in tensors)

    def test_sum_nodes(self):
        graph = Graph.from_atoms([structures.water(), structures.empty(), structures.salt()], SPECIES, 3.7)
        sums = graph.sum_nodes(torch.arange(11.0)[:, None] * torch.tensor([1.0, -2.0]))
        assert sums.tolist() == [[3.0, -6.0], [0.0, 0.0], [52.0, -104.0]]


class TestCharges:
    def test_default_and_info(self):
        cluster, water = structures.water_cluster(), structures.water()
        graph = Graph.from_atoms([cluster, water, water], SPECIES, 3.7, charge=[-3, None, np.float32(0.5)])
        assert graph.charge.tolist() == [1.0, 0.0, 0.5]
        assert Graph.from_atoms([water, water], SPECIES, 3.7, charge=-1).charge.tolist() == [-1.0, -1.0]

    @pytest.mark.parametrize(
        "value",
        ["+1", True, np.bool_(False), np.nan, np.inf, 1j, np.complex128(1), np.array([1.0, 2.0]), [1], {}, 10**400],
        ids=lambda value: repr(value)[:20],
    )
    def test_what_is_not_a_number(self, value):
        atoms = structures.water()
        atoms.info["charge"] = value
        with pytest.raises(InputError, match=r"structure 1 \(H2O\): the charge must be a finite number"):
            Graph.from_atoms([structures.water(), atoms], SPECIES, 3.7)

    @pytest.mark.parametrize("value", ["1", np.nan, True, np.bool_(True)], ids=repr)
    def test_bad_argument(self, value):
        with pytest.raises(InputError, match=r"structure 0 \(H2O\): the charge must be"):
            Graph.from_atoms(structures.water(), SPECIES, 3.7, charge=value)

    @pytest.mark.parametrize(
        "value", [np.array(2), np.array([2.0]), np.int8(2), 2, 2.0, torch.tensor(2), torch.tensor([2.0])], ids=repr
    )
    def test_kinds_of_numbers(self, value):
        atoms = structures.water()
        assert total_charge(atoms, value) == 2.0
        atoms.info["charge"] = value
        assert total_charge(atoms) == 2.0

    @pytest.mark.parametrize("value", [np.array(2), np.array(2.0, "f4"), torch.tensor(2.0)], ids=repr)
    def test_one_for_all(self, value):
        graph = Graph.from_atoms([structures.water()] * 2, SPECIES, 3.7, charge=value)
        assert graph.charge.tolist() == [2.0, 2.0]

    def test_none_is_not_stated(self):
        atoms = structures.water()
        atoms.info["charge"] = None
        assert total_charge(atoms, 1) == 1.0
        assert total_charge(atoms) == 0.0

    @pytest.mark.parametrize("value", [1e6, 11, -10.5])
    def test_more_than_there_are_electrons(self, value):
        with pytest.raises(
            InputError, match=r"structure 0 \(H2O\): a charge of .* e is more than its neutral atoms have"
        ):
            Graph.from_atoms(structures.water(), SPECIES, 3.7, charge=value)
        assert Graph.from_atoms(structures.water(), SPECIES, 3.7, charge=np.sign(value) * 10).num_nodes == 3

    def test_wrong_number_of_charges(self):
        with pytest.raises(InputError, match="2 structures but 3 charges"):
            Graph.from_atoms([structures.water()] * 2, SPECIES, 3.7, charge=[0, 1, 2])


class TestFaults:
    """Each names the structure, and the atoms if there are any to name."""

    @staticmethod
    def refused(atoms, message, coulomb=None):
        with pytest.raises(InputError, match=message) as caught:
            Graph.from_atoms([structures.water(), atoms], SPECIES, 3.7, coulomb)
        assert "structure 1 (" in str(caught.value)

    def test_unknown_element(self):
        self.refused(Atoms("HOAr", np.eye(3)), r"element Ar \(atom 2\) is unknown .* knows H, O, Na, Cl")
        self.refused(Atoms("HX", np.eye(3)[:2]), r"element X \(atom 1\)")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_position_not_finite(self, value):
        atoms = structures.salt()
        atoms.positions[5, 1] = value
        self.refused(atoms, "position of atom 5 is not finite", COULOMB)

    @pytest.mark.parametrize(
        "cell",
        [[[4, 0, 0], [0, 4, 0], [4, 4, 0]], [[4, 0, 0], [0, 4, 0], [4, 4, 1e-6]], [[5, 0, 0], [5, 0, 0], [0, 0, 5]]],
        ids=["flat", "nearly flat", "parallel"],
    )
    def test_no_volume(self, cell):
        self.refused(Atoms("Na", cell=cell, pbc=True), r"\(almost\) no volume")

    def test_missing_cell(self):
        self.refused(Atoms("Na", pbc=True), "periodic along axis 0, but cell vector 0 is zero")
        self.refused(Atoms("Na", cell=[3, 0, 3], pbc=(True, True, False)), "cell vector 1 is zero")

    def test_cell_not_finite(self):
        self.refused(Atoms("Na", cell=np.diag([3.0, np.nan, 3.0]), pbc=True), "cell is not finite")

    @pytest.mark.parametrize("coulomb", [None, COULOMB], ids=["short range", "coulomb"])
    def test_overlap(self, coulomb):
        self.refused(Atoms("H3", [[0, 0, 0], [0, 0, 3], [0, 0, 3.05]]), "atoms 1 and 2 overlap, 0.05 Å", coulomb)
        same = Atoms("HNa", [[0.5, 0.0, 0.0], [6.5, 3.0, -9.0]], cell=[3, 3, 3], pbc=True)  # images coincide
        self.refused(same, "atoms 0 and 1 overlap", coulomb)

    def test_periodic_in_one_direction_with_charges(self):
        self.refused(structures.wire(), "periodic in one direction; the Coulomb sum of this model serves", COULOMB)

    def test_atoms_out_of_all_bounds(self):
        atoms = structures.salt()
        atoms.positions[1] += 1e6 * atoms.cell.array.sum(axis=0)
        self.refused(atoms, "cells apart; wrap them")
