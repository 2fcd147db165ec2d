"""The particle mesh: kernels against the specification, the sum against wave vectors and physics."""

import math

import numpy as np
import pytest
import torch
import vesin
from fastlr.kernels.ewald import reciprocal
from fastlr.kernels.ewald.coulomb import coulomb_form
from fastlr.kernels.ewald.op import coulomb_pairs
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.kernels.ewald_mesh import bins, convolution, errors, naive, op
from fastlr.kernels.ewald_mesh.influence import green, influence, waves, window, window_sum
from fastlr.kernels.ewald_mesh.naive import components
from fastlr.kernels.ewald_mesh.parameters import choose, smooth
from fastlr.kernels.ewald_mesh.potential import MeshPotential, coordinates, mesh_form, mesh_potential
from reference.differences import relative_error
from torch import library

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def place(device: str) -> str:
    return "cpu" if device == "interpreter" else device


def problem(dims, p: int, num_atoms: int, order: int, dtype=torch.float64):
    """A mesh, jets' coefficients, and atoms up to three cells outside; one lies on a mesh point."""
    x = (6.0 * torch.rand(num_atoms, 3, dtype=torch.float64) - 3.0) * torch.tensor(dims)
    x[:1] = torch.tensor([0.0, -1.0, dims[2]])
    mesh = torch.randn(*dims, dtype=dtype)
    return mesh, torch.randn(num_atoms, len(components(order)), dtype=dtype), x.to(dtype)


# --- the specification ---


@pytest.mark.parametrize("p", naive.ORDERS)
def test_splines(p):
    """Truncated powers: M_p(x) = sum_k (-1)^k binomial(p, k) max(x - k, 0)^(p - 1) / (p - 1)!"""
    s = torch.rand(20, dtype=torch.float64) - 0.5
    x = s[:, None] + 0.5 + (p - 1.0 - torch.arange(p))
    powers = sum((-1) ** k * math.comb(p, k) * (x - k).clamp_min(0.0) ** (p - 1) for k in range(p + 1))
    assert relative_error(naive.splines(s, p), powers / math.factorial(p - 1)) < 1e-12
    assert torch.allclose(naive.splines(s, p).sum(1), torch.ones(20, dtype=torch.float64), rtol=1e-14)


def test_splines_are_centred():
    """The first moment of B-splines about an atom is zero: linear functions are gathered exactly."""
    for p in (4, 5):
        x = 8.0 + torch.rand(9, 3, dtype=torch.float64)
        ramp = torch.arange(17, dtype=torch.float64)[:, None, None].expand(17, 17, 17)
        assert torch.allclose(naive.gather(ramp, x, 0, p)[:, 0], x[:, 0], rtol=1e-13)


def test_components():
    assert [len(components(order)) for order in range(4)] == [1, 4, 10, 20]
    assert components(2)[4:] == ((2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_jets_are_derivatives(order):
    mesh, _, x = problem((7, 8, 6), 6, 5, order)
    x.requires_grad_(True)
    jet = naive.gather(mesh, x, order, 6)
    higher = naive.gather(mesh, x, order + 1, 6)
    for number, axes in enumerate(naive.differentiated(order)):
        (gradient,) = torch.autograd.grad(jet[:, number].sum(), x, retain_graph=True)
        assert relative_error(gradient, higher[:, list(axes)].detach()) < 1e-12


# --- the kernels ---

MESHES = [
    ((4, 5, 7), 4, 6),
    ((4, 4, 70), 4, 3),
    ((6, 7, 33), 6, 4),
    ((5, 5, 5), 5, 1),
    ((4, 4, 4), 4, 0),
    ((9, 8, 8), 8, 2),
]
LARGER = [((16, 12, 65), 5, 90), ((8, 9, 11), 7, 70), ((30, 8, 24), 8, 80), ((6, 16, 96), 6, 200)]


def compare(dims, p, num_atoms, order, dtype, device):
    mesh, c, x = (tensor.to(place(device)) for tensor in problem(dims, p, num_atoms, order, dtype))
    sorted_atoms = op.bins_of(x, dims, p)
    found = op.gather(mesh, x, order, p, sorted_atoms), op.spread(c, x, dims, order, p, sorted_atoms)
    mesh, c, x = (tensor.double().cpu() for tensor in (mesh, c, x))
    expected = naive.gather(mesh, x, order, p), naive.spread(c, x, dims, order, p)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert value.shape == reference.shape
        error = torch.linalg.vector_norm(value.cpu().double() - reference)
        assert error <= TOLERANCE[dtype] * torch.linalg.vector_norm(reference)


@DTYPES
@pytest.mark.parametrize(("dims", "p", "num_atoms"), MESHES)
def test_kernels(dims, p, num_atoms, dtype, device, monkeypatch):
    """Kernels must write everything: the memory that they are given is full of NaN."""
    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty_like")):
        original = getattr(owner, name)

        def poisoned(*args, original=original, **kwargs):
            tensor = original(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(7)

        monkeypatch.setattr(owner, name, poisoned)
    few = device == "interpreter" and (p == 5 or dims[2] > 30 or dtype == torch.float32)
    for order in (1,) if few else (0, 1, 2):
        compare(dims, p, num_atoms, order, dtype, device)


@DTYPES
@pytest.mark.parametrize(("dims", "p", "num_atoms"), LARGER)
def test_kernels_of_cpus_on_larger_meshes(dims, p, num_atoms, dtype):
    for order in (0, 2):
        compare(dims, p, num_atoms, order, dtype, "cpu")


@DTYPES
@pytest.mark.parametrize("dims", [(4, 5, 6), (5, 4, 64), (6, 6, 101)])
def test_sorting(dims, dtype, device):
    x = problem(dims, 4, 300, 0, dtype)[2].to(place(device))
    found, expected = op.bins_of(x, dims, 4), bins.sort(x, dims, 4)
    assert all(torch.equal(value, reference) for value, reference in zip(found, expected, strict=True))
    order, ptr, start, _ = found
    assert sorted(order.tolist()) == list(range(300))
    assert ptr[-1] == 300
    assert bool(((start >= 0) & (start < start.new_tensor(dims))).all())


@DTYPES
def test_atoms_beyond_all_digits(dtype):
    """Coordinates that no longer tell where in the cell an atom is must still be somewhere on the mesh."""
    x = (10.0 ** torch.arange(30, dtype=torch.float64) / 3.0).to(dtype)
    for dims in ((7, 9, 11), (13, 12, 10)):
        start = op.bins_of(torch.stack([x, -x, 3.0 * x], dim=1), dims, 4)[2]
        assert bool(((start >= 0) & (start < start.new_tensor(dims))).all())


def test_lost_atoms_do_no_harm():
    """An atom that is nowhere spoils what it touches, and nothing else."""
    mesh, c, x = problem((8, 8, 8), 4, 6, 0)
    x[0] = torch.tensor([math.nan, math.inf, 1e300])
    assert torch.isfinite(op.gather(mesh, x, 0, 4)[1:]).all()
    assert torch.isfinite(op.spread(c, x, (8, 8, 8), 0, 4)).sum() >= 8**3 - 4**3


def test_gather_and_spread_are_transposes(device):
    dims, p, order = (4, 5, 6), 4, 1
    mesh, c, x = (tensor.to(place(device)) for tensor in problem(dims, p, 4, order))
    left, right = (c * op.gather(mesh, x, order, p)).sum(), (mesh * op.spread(c, x, dims, order, p)).sum()
    assert abs(float(left - right)) < 1e-12 * float(mesh.norm() * c.norm())


def test_derivatives(device):
    """Through the operators, against those of the specification by PyTorch: three orders of them."""
    orders = 2 if device == "interpreter" else 3
    dims, p = (4, 4, 4), 4
    tensors = problem(dims, p, 3, 0)
    probe = torch.randn(3, 3, dtype=torch.float64)
    results = []
    for functions, where in ((op, place(device)), (naive, "cpu")):
        mesh, c, x = (tensor.to(where).requires_grad_(True) for tensor in tensors)
        product = (functions.spread(c, x, dims, 0, p) * mesh).sum() + (functions.gather(mesh, x, 0, p) ** 3).sum()
        first = torch.autograd.grad(product, (mesh, c, x), create_graph=True)
        second = torch.autograd.grad((first[2] * probe.to(where)).sum(), (mesh, c, x), create_graph=True)
        third = []
        if orders == 3:
            third = torch.autograd.grad((second[2] * probe.to(where)).sum(), (mesh, c, x))
        results.append([product, *first, *second, *third])
    for number, (value, reference) in enumerate(zip(*results, strict=True)):
        assert relative_error(value.detach().cpu(), reference.detach()) < 1e-12, number


@pytest.mark.parametrize("order", [0, 1])
def test_finite_differences(order):
    dims, p = (6, 6, 7), 6
    mesh, c, x = problem(dims, p, 2, order)
    x = x.requires_grad_(True)
    mesh = mesh[:, :, :7].requires_grad_(True)
    c = c.requires_grad_(True)
    part = torch.randn(6, 6, 7, dtype=torch.float64)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: op.gather(mesh.detach(), x, order, p), [x])
        assert check(lambda c, x: (op.spread(c, x, dims, order, p) * part).sum(), [c, x])
    assert torch.autograd.gradcheck(lambda mesh: op.gather(mesh, x.detach(), order, p).sum(0), [mesh])


def test_same_bits_on_any_number_of_threads():
    dims, p = (25, 20, 40), 6
    mesh, c, x = problem(dims, p, 4000, 1)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sorted_atoms = op.bins_of(x, dims, p)
        results.append(
            [*sorted_atoms, op.spread(c, x, dims, 1, p, sorted_atoms), op.gather(mesh, x, 1, p, sorted_atoms)]
        )
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_opcheck():
    dims, p = (5, 6, 7), 5
    mesh, c, x = (tensor.requires_grad_(True) for tensor in problem(dims, p, 4, 1, torch.float32))
    sorted_atoms = op.bins_of(x, dims, p)
    library.opcheck(op.mesh_bins.overload, (x.detach(), list(dims), p))
    library.opcheck(op.mesh_gather.overload, (mesh, x, sorted_atoms, 1, p))
    library.opcheck(op.mesh_spread.overload, (c, x, sorted_atoms, list(dims), 1, p))


def test_only_what_is_wanted_is_computed(monkeypatch):
    """The gradient by charges alone gathers potentials, no derivatives; that by the mesh alone gathers nothing."""
    mesh, c, x = problem((6, 6, 6), 4, 5, 0)
    calls = []
    for name, place_of_order in (("mesh_gather", 3), ("mesh_spread", 4)):
        original = getattr(op, name)

        def recorded(*args, name=name, place=place_of_order, original=original):
            calls.append((name, args[place]))
            return original(*args)

        monkeypatch.setattr(op, name, recorded)
    mesh, c, x = (tensor.requires_grad_(True) for tensor in (mesh, c, x))
    spread, gathered = op.spread(c, x, (6, 6, 6), 0, 4) * mesh.detach(), op.gather(mesh, x, 0, 4)
    for value, inputs, expected in (
        (spread, [c], [("mesh_gather", 0)]),
        (spread, [c, x], [("mesh_gather", 1)]),
        (gathered, [mesh], [("mesh_spread", 0)]),
        (gathered, [x], [("mesh_gather", 1)]),
    ):
        calls.clear()
        torch.autograd.grad(value.sum(), inputs, retain_graph=True)
        assert calls == expected


@DTYPES
@pytest.mark.parametrize("p", naive.ORDERS)
def test_rows_end_with_the_mesh(p, dtype, monkeypatch):
    """The widest vectors reach beyond a stencil, where they add zero; not beyond the mesh: -0 + 0 would be +0 there."""
    allocated = []
    original = torch.Tensor.new_empty

    def with_margin(tensor, *shape, **options):
        shape = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        memory = original(tensor, shape.numel() + 32, **options).fill_(-0.0)
        allocated.append(memory)
        return memory[: shape.numel()].view(shape)

    dims = (p, p, p + 1)
    x = torch.tensor([[n - 1.0 - 0.5 * p + offset for n in dims] for offset in (0.1, 0.9, 1.1)], dtype=dtype)
    sorted_atoms = op.bins_of(x, dims, p)
    monkeypatch.setattr(torch.Tensor, "new_empty", with_margin)
    op.spread(torch.ones(3, 1, dtype=dtype), x, dims, 0, p, sorted_atoms)
    margins = [memory[-32:] for memory in allocated if memory.numel() == p * p * (p + 1) + 32]
    assert margins
    assert all(bool(torch.signbit(margin).all()) for margin in margins)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 3}, "order 4 to 8, got 3"),
        ({"p": 7}, r"at least p = 7 points, got \(5, 6, 7\)"),
        ({"order": -1}, "not negative"),
        ({"x": torch.ones(4, 2)}, r"x: expected \(4, 3\)"),
        ({"x": torch.ones(4, 3).double()}, "of torch.float64, got"),
        ({"x": torch.ones(4, 3).half()}, "for float32 and float64"),
        ({"c": torch.ones(4, 3)}, r"c: expected \(4, 4\)"),
        ({"x": torch.ones(3, 3), "c": torch.ones(3, 4)}, "bins belong to other atoms than these 3"),
        ({"dims": [5, 6, 8, 9]}, "three axes"),
        ({"dims": [5, 5, 7]}, "another mesh than"),
    ],
)
def test_wrong_inputs(change, message):
    x = torch.rand(4, 3)
    given = {"c": torch.ones(4, 4), "x": x, "dims": [5, 6, 7], "order": 1, "p": 5}
    sorted_atoms = op.bins_of(x, (5, 6, 7), 5)
    given |= change
    with pytest.raises(ValueError, match=message):
        op.mesh_spread(given["c"], given["x"], sorted_atoms, given["dims"], given["order"], given["p"])


# --- convolution and influence function ---


@pytest.mark.parametrize("dims", [(4, 3, 6), (3, 4, 5)])
def test_convolution(dims):
    half = dims[2] // 2 + 1
    a, b = (torch.randn(*dims, dtype=torch.float64, requires_grad=True) for _ in range(2))
    g = torch.rand(dims[0], dims[1], half, dtype=torch.float64, requires_grad=True)
    direct = torch.fft.irfftn(g * torch.fft.rfftn(a), s=dims)
    assert relative_error(convolution.convolve(a, g).detach(), direct.detach()) < 1e-14
    assert abs(float((convolution.form(a, a, g) - (a * direct).sum()).detach())) < 1e-12
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(convolution.convolve, (a, g))
        assert check(convolution.form, (a, b, g))
        assert check(lambda a, g: convolution.form(a, a, g), (a, g))


@pytest.mark.parametrize("p", naive.ORDERS)
def test_window(p):
    """The Fourier series of the spline is the sum of U over all images, and that of U^2 is known in closed form."""
    n, index = 11, torch.arange(-5.0, 6.0, dtype=torch.float64)
    images = [window(index + m * n, n, p) for m in range(-300, 301)]
    assert relative_error(window_sum(index, n, p), sum(value**2 for value in images)) < 1e-13
    x = torch.tensor([[0.3, 0.0, 0.0]], dtype=torch.float64)
    line = naive.spread(torch.ones(1, 1, dtype=torch.float64), x, (n, n, n), 0, p).sum(dim=(1, 2))
    found = (line * torch.exp(-2j * math.pi * index[:, None] * torch.arange(n) / n)).sum(1)
    phases = sum(value * torch.exp(-2j * math.pi * (index + m * n) * 0.3 / n)
                 for m, value in zip(range(-300, 301), images, strict=True))  # fmt: skip
    assert float((found - phases).abs().max()) < 1e-8


def skewed(rng, edge: float = 6.0) -> torch.Tensor:
    return torch.from_numpy((np.eye(3) + 0.2 * rng.uniform(-1.0, 1.0, (3, 3))) * edge)


def test_influence_is_optimal(rng):
    """No other G has a smaller mean square error of the energy, sum_m,m' (G U_m U_m' - delta g_m)^2."""
    cell, eta, dims, p = skewed(rng), 0.9, (7, 8, 9), 4
    g_mesh = influence(cell, eta, dims, p, images=2) / math.prod(dims)
    u2, g = [], []
    shifts = range(-2, 3)
    for m in [(i, j, k) for i in shifts for j in shifts for k in shifts]:
        index = [i + a * n for i, a, n in zip(waves(dims), m, dims, strict=True)]
        u = [window(i, n, p) ** 2 for i, n in zip(index, dims, strict=True)]
        u2.append(u[0][:, None, None] * u[1][:, None] * u[2])
        g.append(green(cell, eta, [i.double() for i in index]))
    u2, g = torch.stack(u2), torch.stack(g)

    def slope(factor: float):
        value = (factor * g_mesh).clone().requires_grad_(True)
        # sum over m and m': (G^2 U_m^2 U_m'^2) - 2 G U_m^2 g_m + g_m^2
        error = (value**2 * u2.sum(0) ** 2 - 2.0 * value * (u2 * g).sum(0) + (g**2).sum(0)).sum()
        return torch.autograd.grad(error, value)[0].norm()

    assert slope(1.0) < 1e-5 * slope(1.1)  # images beyond the second are left out
    simple = influence(cell, eta, dims, p) / math.prod(dims)
    core = (slice(0, 2), slice(0, 2), slice(0, 2))  # far from the edge both are the same
    assert torch.allclose(simple[core], g_mesh[core], rtol=1e-4)


# --- the reciprocal sum ---


def system_of(x, cell, pbc=(1, 1, 1), accuracy=1e-14, eta=None) -> System:
    """Point charges."""
    n = len(x)
    tables = coulomb_tables(x.numpy(), cell.numpy(), np.array(pbc, bool), np.zeros(n), accuracy, eta)
    batch, ptr = torch.zeros(n, dtype=torch.int64), torch.tensor([0, n])
    return System.of(x, torch.zeros(n, dtype=torch.float64), cell[None], batch, ptr, tables)


def by_waves(u, q, x, cell, eta, height=0.0):
    """The sum over wave vectors of the whole lattice that ``cell`` spans."""
    bound = torch.ceil(8.5 / eta * torch.linalg.vector_norm(cell.detach(), dim=1) / (2.0 * math.pi)).int().tolist()
    index = [torch.arange(-b, b + 1).double() for b in bound]
    g = green(cell, eta, index, height)
    fractional = 2.0 * math.pi * x @ torch.linalg.inv(cell)
    factors = [torch.exp(1j * fractional[:, axis, None] * index[axis]) for axis in range(3)]
    s_u, s_q = (torch.einsum("n,na,nb,nc->abc", charges.to(torch.complex128), *factors) for charges in (u, q))
    return (g * (s_u.conj() * s_q).real).sum()


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0)], ids=["cell", "slab"])
def test_against_wave_vectors(pbc, rng):
    """Fine meshes agree with ``reciprocal.form`` as closely as splines allow, in skewed cells and for far atoms."""
    cell = skewed(rng)
    x = torch.from_numpy(rng.uniform(-0.5, 1.5, (9, 3)))
    x[:, 2] *= 0.3
    system = system_of(x @ cell, cell, pbc, eta=0.9)
    lattice, height = system.lattice()[0], float(system.tables.height[0])
    u, q = (torch.from_numpy(rng.normal(size=9)) for _ in range(2))
    dims = (36, 35, 40 if height == 0.0 else 150)
    for left in (u, q):
        expected = reciprocal.form(left, q, system, system.lattice())[0]
        error = float(mesh_form(left, q, system.positions, lattice, 0.9, dims, 8, height) / expected - 1.0)
        assert abs(error) < 1e-8
        # the helper of the next test sums the same
        assert abs(float(by_waves(left, q, system.positions, lattice, 0.9, height) / expected - 1.0)) < 1e-11


@pytest.mark.parametrize("height", [0.0, 4.0])
def test_derivatives_against_wave_vectors(height, rng):
    cell = skewed(rng)
    if height:
        normal = torch.linalg.cross(cell[0], cell[1])
        cell[2] = 2.0 * height * normal / normal.norm()
    x = torch.from_numpy(rng.uniform(-0.5, 1.5, (5, 3))) @ cell
    u, q = (torch.from_numpy(rng.normal(size=5)) for _ in range(2))
    probes = [torch.from_numpy(rng.normal(size=tensor.shape)) for tensor in (u, q, x, cell)]
    results = []
    for function in (lambda *leaves: mesh_form(*leaves, 0.9, (40, 40, 50), 8, height),
                     lambda *leaves: by_waves(*leaves, 0.9, height)):  # fmt: skip
        leaves = [tensor.clone().requires_grad_(True) for tensor in (u, q, x, cell)]
        first = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        scalar = sum((value * probe).sum() for value, probe in zip(first, probes, strict=True))
        results.append([*first, *torch.autograd.grad(scalar, leaves)])
    for number, (value, reference) in enumerate(zip(*results, strict=True)):
        assert relative_error(value.detach(), reference.detach()) < 1e-6, number


@pytest.mark.parametrize("height", [0.0, 3.0])
def test_finite_differences_of_the_form(height, rng):
    """Exact derivatives of what is computed, on a mesh so coarse that it is far from the sum over wave vectors."""
    cell = skewed(rng).requires_grad_(True)
    x = (torch.from_numpy(rng.uniform(-0.5, 1.5, (2, 3))) @ cell.detach()).requires_grad_(True)
    u, q = (torch.from_numpy(rng.normal(size=2)).requires_grad_(True) for _ in range(2))
    options = 0.9, (7, 6, 8), 6, height
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda u, q, x, cell: mesh_form(u, q, x, cell, *options), (u, q, x, cell))
        assert check(lambda q, x, cell: mesh_form(q, q, x, cell, *options), (q, x, cell))
        assert check(lambda q, x, cell: mesh_potential(q, x, cell, *options), (q, x, cell))


def in_plane(q, x, cell, eta):
    """sum q phi of a slab by Parry's sum over the waves of the plane; nothing of it knows of a third lattice vector.

    phi_i = (pi / S) sum_j q_j sum_k cos(k r) / k [exp(kz) erfc(k eta / sqrt2 + z / sqrt2 eta) + the same for -z]
            - (2 pi / S) sum_j q_j [z erf(z / sqrt2 eta) + eta sqrt(2 / pi) exp(-z^2 / 2 eta^2)]
    """
    normal = torch.linalg.cross(cell[0], cell[1])
    area = normal.norm()
    normal = normal / area
    separation = x[:, None] - x
    z, s = separation @ normal, math.sqrt(2.0) * eta
    matrix = (
        -2.0 * math.pi / area * (z * torch.erf(z / s) + eta * math.sqrt(2.0 / math.pi) * torch.exp(-((z / s) ** 2)))
    )
    numbers = torch.arange(-20.0, 21.0, dtype=x.dtype)
    numbers = torch.cartesian_prod(numbers, numbers)
    waves = (
        2.0 * math.pi * numbers[numbers.any(dim=1)] @ torch.linalg.inv(torch.stack([cell[0], cell[1], normal])).T[:2]
    )
    k, z = waves.norm(dim=1), z[:, :, None]
    sides = sum(torch.exp(side * k) * torch.erfc(k * eta / math.sqrt(2.0) + side / s) for side in (z, -z))
    matrix = matrix + math.pi / area * (torch.cos(separation @ waves.T) / k * sides).sum(dim=2)
    return q @ matrix @ q


def of_slab(q, x, cell, eta, dims, height):
    """The same by a mesh; the term of k = 0, which ``mesh_form`` leaves out, is the integral of -2 pi |z| up to R."""
    constant = -2.0 * math.pi * height**2 / torch.linalg.det(cell).abs()
    return mesh_form(q, q, x, cell, eta, dims, 8, height) + constant * q.sum() ** 2


@pytest.mark.parametrize("tilt", [0.0, 0.3], ids=["upright", "tilted"])
def test_slab_against_sum_in_the_plane(tilt, rng):
    """A charged slab across the boundary of a low cell, with derivatives by everything: none by the third vector."""
    cell = torch.tensor([[16.0, 0.5, 0.0], [0.8, 14.0, 0.0], [5.0 * tilt, -3.0 * tilt, 16.0]], dtype=torch.float64)
    x = torch.from_numpy(rng.uniform(0.0, 1.0, (4, 3))) @ torch.diag(cell.new_tensor([15.0, 13.0, 2.5]))
    x[:, 2] += 15.0
    q = torch.from_numpy(rng.normal(size=4))
    probes = [torch.from_numpy(rng.normal(size=tensor.shape)) for tensor in (q, x, cell)]
    results = []
    for function in (lambda q, x, cell: of_slab(q, x, cell, 0.9, (64, 60, 64), 8.0),
                     lambda q, x, cell: in_plane(q, x, cell, 0.9)):  # fmt: skip
        leaves = [tensor.clone().requires_grad_(True) for tensor in (q, x, cell)]
        value = function(*leaves)
        first = torch.autograd.grad(value, leaves, create_graph=True)
        scalar = sum((gradient * probe).sum() for gradient, probe in zip(first, probes, strict=True))
        results.append([value, *first, *torch.autograd.grad(scalar, leaves)])
    for number, (value, reference) in enumerate(zip(*results, strict=True)):
        assert relative_error(value.detach(), reference.detach()) < 1e-4, number


def test_thick_slabs_meet_their_images(rng):
    """What ``mesh_form`` asks of the height of the cell is not said in vain."""
    cell = torch.diag(torch.tensor([6.0, 5.5, 10.0], dtype=torch.float64))
    q = torch.tensor([1.0, -1.0], dtype=torch.float64)
    errors = []
    for thickness in (1.0, 6.0):
        x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, thickness]], dtype=torch.float64)
        found, expected = of_slab(q, x, cell, 0.9, (24, 24, 40), 5.0), in_plane(q, x, cell, 0.9)
        errors.append(abs(float(found / expected - 1.0)))
    assert errors[0] < 1e-6
    assert errors[1] > 1e-2


@DTYPES
def test_potential(dtype, rng, device):
    """All ways to the potential agree, and it is what the form is the sum of."""
    cell = skewed(rng).to(dtype)
    x = torch.from_numpy(rng.uniform(-2.0, 2.0, (3, 3))).to(dtype) @ cell
    u, q = (torch.from_numpy(rng.normal(size=3)).to(dtype) for _ in range(2))
    cell, x, u, q = (tensor.to(place(device)) for tensor in (cell, x, u, q))
    options = 0.9, (4, 4, 6) if device == "interpreter" else (9, 8, 10), 4, 2.0
    potential = mesh_potential(q, x, cell, *options)
    again = MeshPotential(x, cell, *options)
    form = mesh_form(u, q, x, cell, *options)
    assert form.dtype == potential.dtype == dtype
    for value in (again(q), again(q)):
        assert relative_error(value.cpu(), potential.cpu()) < TOLERANCE[dtype]
    assert abs(float((u * potential).sum() - form)) < TOLERANCE[dtype] * float(u.norm() * potential.norm())
    exact = mesh_form(u.double(), q.double(), x.double(), cell.double(), *options)
    assert abs(float(exact - form)) < 3.0 * TOLERANCE[dtype] * float(u.norm() * potential.norm())


# --- errors and parameters ---


def salt(cells: int, rattle: float, rng) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions, charges and cell of NaCl."""
    grid = np.stack(np.meshgrid(*[np.arange(2 * cells)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    x = 2.82 * grid + rattle * rng.normal(size=grid.shape)
    cell = torch.eye(3, dtype=torch.float64) * 5.64 * cells
    return torch.from_numpy(x), torch.from_numpy(1.0 - 2.0 * (grid.sum(axis=1) % 2)), cell


def near(q, x, cell, eta: float, r_cut: float) -> torch.Tensor:
    """q' A q of the pairs of points nearer than r_cut, and what charges have with themselves."""
    i, j, shift = vesin.NeighborList(cutoff=r_cut, full_list=True).compute(
        x.detach().numpy(), cell.numpy(), True, quantities="ijS"
    )
    order, n = np.argsort(i, kind="stable"), len(q)
    ptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(i, minlength=n), out=ptr[1:])
    pairs = [torch.from_numpy(value) for value in (ptr, j[order].astype(np.int32), shift[order].astype(np.int8))]
    beta = torch.tensor([math.sqrt(0.5) / eta], dtype=torch.float64)
    phi = coulomb_pairs(q, x, torch.zeros_like(q), cell[None], beta, [*pairs, torch.zeros(n, dtype=torch.int64)])
    return (q * phi).sum() - math.sqrt(2.0 / math.pi) / eta * (q * q).sum()


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5])
def test_madelung(accuracy, rng):
    x, q, cell = salt(2, 0.0, rng)
    chosen = choose(cell, len(q), float(q @ q), accuracy)
    form = near(q, x, cell, chosen.eta, chosen.r_cut) + mesh_form(q, q, x, cell, chosen.eta, chosen.dims, chosen.p)
    madelung = -float(form) / len(q) * 2.82
    assert abs(madelung - 1.7475645946) < accuracy * 1.7475645946


@pytest.mark.parametrize("r_cut", [None, 6.5])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-4, 1e-6])
def test_accuracy(accuracy, r_cut, rng):
    x, q, cell = salt(3, 0.15, rng)
    chosen = choose(cell, len(q), float(q @ q), accuracy, r_cut)
    x.requires_grad_(True)
    exact = coulomb_form(q, q, system_of(x.detach(), cell, accuracy=1e-12)._replace(positions=x))[0]
    found = near(q, x, cell, chosen.eta, chosen.r_cut)
    found = found + mesh_form(q, q, x, cell, chosen.eta, chosen.dims, chosen.p)
    (difference,) = torch.autograd.grad(0.5 * (found - exact), x)
    scale = errors.force_scale(float(torch.linalg.det(cell)), len(q), float(q @ q))
    error = float(difference.norm()) / math.sqrt(len(q)) / scale
    assert 0.1 * accuracy < error < accuracy
    assert 0.3 * chosen.error < error
    assert r_cut is None or chosen.r_cut == r_cut


@pytest.mark.parametrize(("n", "p", "eta"), [(12, 4, 1.0), (16, 6, 1.0), (16, 8, 0.7), (32, 6, 0.7)])
def test_error_of_the_mesh(n, p, eta, rng):
    """The estimate holds for charges at random places; the cheap influence function is as good as the full one."""
    cell = torch.tensor([[10.0, 0.0, 0.0], [3.0, 9.0, 1.0], [-2.0, 2.0, 8.0]], dtype=torch.float64)
    q = torch.from_numpy(np.where(rng.random(150) < 0.5, 1.0, -1.0))
    x = (torch.from_numpy(rng.random((150, 3))) @ cell).requires_grad_(True)

    def forces(dims, p, images=0):
        places = coordinates(x, cell, dims)
        mesh = op.spread(q[:, None], places, dims, 0, p)
        form = convolution.form(mesh, mesh, influence(cell, eta, dims, p, images=images))
        return -0.5 * torch.autograd.grad(form, x)[0]

    exact = forces((54, 54, 54), 8)
    error, full = (float((forces((n, n, n), p, k) - exact).norm()) / math.sqrt(len(q)) for k in (0, 1))
    estimate = errors.mesh_error(cell, eta, (n, n, n), p, len(q), float(q @ q))
    assert 0.8 < estimate / error < 1.25
    assert 0.9 < error / full < 1.02


def test_choices(rng):
    cell = skewed(rng, 30.0)
    for accuracy in (1e-2, 1e-4, 1e-7):
        chosen = choose(cell, 2500, 900.0, accuracy)
        assert chosen.error <= accuracy
        assert all(n == smooth(n) >= chosen.p for n in chosen.dims)
        other = choose(cell, 2500, 0.9, accuracy)  # charges of another unit
        assert (other.dims, other.p) == (chosen.dims, chosen.p)
        assert choose(cell, 2500, 900.0, accuracy, 1.5 * chosen.r_cut).seconds > chosen.seconds
    again = choose(cell, 2500, 900.0, accuracy, products=50)  # pairs are cheap once their functions are known
    assert again.r_cut > chosen.r_cut
    assert again.seconds + 50 * again.product_seconds < chosen.seconds + 50 * chosen.product_seconds
    wide = choose(cell, 2500, 900.0, 1e-4, widest=2.0)
    assert wide.eta >= 2.0 * math.sqrt(2.0)
    widest = choose(cell, 2500, 900.0, 1e-10, widest=9.0)  # the cutoff goes as far as is needed
    assert widest.eta >= 9.0 * math.sqrt(2.0)
    assert widest.error <= 1e-10
    with pytest.raises(ValueError, match="too short for charges of width"):
        choose(cell, 2500, 900.0, 1e-4, r_cut=6.0, widest=2.0)
    with pytest.raises(ValueError, match="got 0 atoms"):
        choose(cell, 0, 1.0, 1e-4)
    assert [smooth(n) for n in (1, 11, 13, 121, 211)] == [1, 12, 14, 125, 216]
