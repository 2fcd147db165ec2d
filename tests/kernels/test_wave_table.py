"""Tables of wave vectors on CPUs: cosines and sines, and derivatives of the reciprocal sum, against the naive one."""

import pytest
import torch
from fastlr.kernels.ewald import reciprocal
from fastlr.kernels.ewald.wave_parts import LINES, THIRDS
from fastlr.kernels.ewald.wave_table import WaveTable
from reference.coulomb_systems import CELL, SLAB, random_system
from reference.differences import relative_error

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
SYSTEMS = {
    "one atom": (1, CELL, 1e-8), "odd": (7, CELL, 1e-8), "few waves": (5, CELL, 1e-1), "some": (37, CELL, 1e-6),
    "many": (300, CELL, 1e-4), "slab": (6, SLAB, 1e-4), "no waves": (3, CELL, 0.9),
}  # fmt: skip


def made(rng, name: str):
    n, pbc, accuracy = SYSTEMS[name]
    return random_system(rng, [(n, pbc)], accuracy=accuracy)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYSTEMS)
def test_cosines_and_sines(name, dtype, rng):
    """Of every line and third index in use; none where there is no atom, or no line."""
    system = made(rng, name)
    table = WaveTable(system, dtype)
    table.line.fill_(torch.nan)[2 * table.num_lines :] = 0.0
    table.move(system.positions)
    lines, third = reciprocal.factors(system._replace(tables=sorted_lines(system, table)), system.lattice())
    n = len(system.positions)
    for found, expected, count in ((table.line, lines, table.num_lines), (table.third, third, table.num_thirds)):
        expected = expected[0].T.view(2, count, n).transpose(0, 1).reshape(2 * count, n)
        limit = 1e-7 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(found[: 2 * count, :n].double(), expected, rtol=0.0, atol=limit)
    assert not table.line[2 * table.num_lines :].any()
    assert table.line.isfinite().all()


def sorted_lines(system, table):
    return system.tables._replace(lines=table.lines.long()[None])


@pytest.mark.parametrize("name", SYSTEMS)
def test_extents(name, rng):
    """Nothing that counts lies beyond the blocks of its line, and the last block of each tile is needed."""
    table = WaveTable(made(rng, name), torch.float64)
    for tile, blocks in enumerate(table.extent.tolist()):
        counts = table.weights[LINES * tile : LINES * (tile + 1)].abs().amax(dim=(0, 1)) if table.num_lines else []
        assert not bool(counts[THIRDS * blocks :].any())
        assert blocks == 0 or bool(counts[THIRDS * (blocks - 1) :].any())
    assert len(table.extent) * LINES >= table.num_lines


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYSTEMS)
def test_form_and_derivatives(name, dtype, threads, rng, monkeypatch):
    """Charges of zero mean; what is there already is added to."""
    monkeypatch.setattr(WaveTable, "threads", threads)
    system = made(rng, name)
    n = len(system.positions)
    u, q = torch.from_numpy(rng.normal(size=(2, n)))
    table = WaveTable(system, dtype)
    table.move(system.positions + 0.1)
    table.move(system.positions)
    old = torch.from_numpy(rng.normal(size=(n, 3))), torch.from_numpy(rng.normal(size=(3, 3)))
    gradient, strain = (tensor.clone() for tensor in old)
    form = table.pull(u, q, gradient, strain)
    leaf, deformation = system.positions.clone().requires_grad_(True), torch.zeros(3, 3).double().requires_grad_(True)
    change = torch.eye(3) + deformation
    moved = system._replace(positions=leaf @ change, cell=system.cell @ change)
    lattice = moved.lattice()
    value = reciprocal.form(u, q, moved, lattice)[0]
    by_position, by_strain = torch.autograd.grad(value, (leaf, deformation), materialize_grads=True)
    size = float(system.positions.new_tensor(float(u.norm() * q.norm())) * table.weights.sum())
    assert abs(float((form - value).detach())) <= TOLERANCE[dtype] * max(size, 1e-30)
    scale = float(by_position.norm()) if n > 1 else size
    assert float((gradient - old[0] - by_position).norm()) <= TOLERANCE[dtype] * max(scale, 1e-30) + 1e-14
    if not system.has_slabs:
        assert float((strain - old[1] - by_strain).norm()) <= TOLERANCE[dtype] * max(size, 1e-30) + 1e-14


def test_the_same_bits_every_time(rng):
    system = made(rng, "many")
    table = WaveTable(system, torch.float32)
    table.move(system.positions)
    u, q = torch.from_numpy(rng.normal(size=(2, 300)))
    results = []
    for _ in range(3):
        gradient, strain = torch.zeros(300, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
        results.append((torch.tensor(table.pull(u, q, gradient, strain)), gradient, strain))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert relative_error(results[0][1], gradient) == 0.0
