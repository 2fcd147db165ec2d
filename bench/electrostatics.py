"""Coulomb sums and charge equilibration beside public packages: equally accurate, checked, then timed in turn.

**Coulomb sums** (``run_coulomb``): energy and forces of point charges in rattled NaCl. What they cost depends on how
accurate they are, so every contestant is first tuned to the same relative RMS error of forces, 1e-4 unless told
otherwise, and to the fastest way there is to it. The reference is a sum of its own, ``exact``.

A contestant is a subclass of ``electrostatics_peers.CoulombPeer``; ``run_coulomb(..., contestants=[...])`` takes any
number of them. It offers
    ``name``, ``distribution``, ``module`` and ``obstacle()``: what it is, and why it cannot run, if so;
    ``__init__(system, cutoff, smearing, **resolution)``: all that stays the same while atoms move little, such as lists
        of pairs (``system.neighbours``), wave vectors and tables; not timed;
    ``__call__()``: energy (eV) and forces (N, 3) (eV/Å) from ``system.positions`` anew; timed;
    ``resolutions(system)``: the settings of its reciprocal sum to try, as keywords of ``__init__`` that mean the same
        in a larger system (spacings and cutoffs, not numbers of points). With each, tuning looks for the smallest
        ``cutoff`` for which some ``smearing`` keeps the tolerance;
    ``suggestions(system, accuracy)``: complete sets of parameters, as its own tuning proposes them. A method without
        parameters to search gives its only set here, and no resolutions;
    ``variants``: further keywords to be timed, for example of a compiled form.

**Charge equilibration** (``run_equilibration``): the charges of 1,024 molecules at once (``molecules``) or of a cell of
1,000 atoms (``equilibration_cell``), and their gradient. A contestant is a subclass of
``electrostatics_peers.EquilibrationPeer``:
    ``name``, ``distribution``, ``module`` and ``obstacle(problem)``;
    ``__init__(problem)``: tables and lists; not timed;
    ``__call__(positions)``: charges (N,), differentiable by positions (N, 3); timed without and with the gradient of a
        random linear combination, for which one adjoint solve is enough;
    ``separable`` with ``prepare(positions)`` and ``solve(matrices)``: for methods that make matrices; the solution
        alone is timed, too. Others set ``separable = False``.
"""

import ctypes
import math
import time
from collections.abc import Callable, Sequence

import ase.data
import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.parity import relative_rms

from .electrostatics_peers import (
    EQUILIBRATION_PEERS,
    PEERS,
    CoulombPeer,
    Equilibration,
    EquilibrationPeer,
    System,
    bordered,
    molecular_matrix,
)
from .timing import alternate

TOLERANCE = 1e-4  # relative RMS error of forces, and of charges
SMEARINGS = tuple(0.7 * 1.03**n for n in range(63))  # Å, up to 4.4
CUTOFFS = tuple(3.5 * 1.01**n for n in range(183))  # Å, up to 21.4
LARGEST_CUTOFF = CUTOFFS[-1]
REPEATS = {4_096: 8, 13_824: 12, 110_592: 24}  # atoms: conventional cells of NaCl along each axis

# Electronegativity (eV/e) and hardness (eV/e^2): Rappe & Goddard, J. Phys. Chem. 95, 3358 (1991), Table 1.
ELEMENTS = {
    "H": (4.528, 13.890), "C": (5.343, 10.126), "N": (6.899, 11.760), "O": (8.741, 13.364),
    "Na": (2.843, 4.592), "Cl": (8.564, 9.892),
}  # fmt: skip


def rock_salt(repeat: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> System:
    """8 repeat^3 ions of NaCl, a = 5.64 Å, charges +1 and -1, displaced by 0.1 Å (standard deviation, each axis)."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    charges = torch.where(torch.tensor(atoms.numbers) == 11, 1.0, -1.0)
    tensors = (torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), charges)
    return System(f"NaCl, {len(atoms):,} ions", *(tensor.to(device, dtype) for tensor in tensors))


def exact(system: System, accuracy: float = 1e-9, cutoff: float = 14.0) -> tuple[Tensor, Tensor]:
    """Energy in eV and forces (N, 3) in eV/Å of a neutral system, by a plain Ewald sum in float64.

    Both sums stop where a Gaussian has fallen to ``accuracy``; forces of NaCl are then accurate to ten times that.
    Phases of wave vectors are products, exp(i k r) = prod_a exp(2 pi i m_a s_a) with fractional coordinates s, so that
    the reciprocal sum is a sequence of matrix products.
    """
    system = system.to("cpu", torch.float64)
    positions, cell, charges = system.positions, system.cell, system.charges
    reach = math.sqrt(-2.0 * math.log(accuracy))
    eta = cutoff / reach
    beta = 1.0 / (math.sqrt(2.0) * eta)
    energy, forces = -(charges**2).sum() * beta / math.sqrt(math.pi), torch.zeros_like(positions)

    for i, j, shifts in zip(*(part.split(2**21) for part in system.neighbours(cutoff, full=False)), strict=True):
        d = positions[j] - positions[i] + shifts.double() @ cell
        r = torch.linalg.vector_norm(d, dim=1)
        product, screened = charges[i] * charges[j], torch.erfc(beta * r) / r
        energy = energy + (product * screened).sum()
        slope = product * (screened + 2.0 * beta / math.sqrt(math.pi) * torch.exp(-((beta * r) ** 2))) / r**2
        forces.index_add_(0, i, -slope[:, None] * d).index_add_(0, j, slope[:, None] * d)

    inverse, volume = torch.linalg.inv(cell), torch.linalg.det(cell).abs()
    k_cutoff = reach / eta
    limits = (torch.linalg.vector_norm(cell, dim=1) * (k_cutoff / (2.0 * math.pi))).ceil().long().tolist()
    index = [torch.arange(-limit, limit + 1, dtype=torch.float64) for limit in limits]
    fractional = 2.0 * math.pi * positions @ inverse
    phases = [torch.polar(torch.tensor(1.0).double(), fractional[:, a, None] * index[a]) for a in range(3)]
    gradient = torch.zeros_like(positions)  # by the fractional coordinates times 2 pi
    for first in range(limits[0] + 1):  # of m and -m the one, counted twice
        m = torch.cartesian_prod(torch.tensor([float(first)]).double(), index[1], index[2])
        square = ((2.0 * math.pi * m @ inverse.T) ** 2).sum(dim=1)
        counted = (square > 0) & (square < k_cutoff**2)
        weight = torch.where(counted, torch.exp(-0.5 * eta**2 * square) / square.clamp_min(1e-9), 0.0)
        weight = (4.0 * math.pi / volume * (2.0 if first else 1.0) * weight).view(len(index[1]), len(index[2]))
        rows, columns = weight.any(dim=1), weight.any(dim=0)
        if not rows.any():
            continue
        weight = weight[rows][:, columns].to(torch.complex128)
        line = (phases[0][:, limits[0] + first] * charges)[:, None] * phases[1][:, rows]
        last = phases[2][:, columns]
        amplitude = line.T @ last  # sum_i q_i exp(i k r_i)
        energy = energy + 0.5 * (weight.real * amplitude.abs() ** 2).sum()
        weighted = weight * amplitude.conj()
        along = line * (last @ weighted.T)
        across = line * (last @ (weighted * index[2][columns]).T)
        gradient[:, 0] -= first * along.sum(dim=1).imag
        gradient[:, 1] -= (along @ index[1][rows].to(along.dtype)).imag
        gradient[:, 2] -= across.sum(dim=1).imag
    return COULOMB_CONSTANT * energy, COULOMB_CONSTANT * (forces - 2.0 * math.pi * gradient @ inverse.T)


def error(peer: type[CoulombPeer], system: System, forces: Tensor, parameters: dict) -> float:
    """Relative RMS error of forces; infinite where the method refuses the parameters."""
    try:
        return relative_rms(peer(system, **parameters)()[1], forces)
    except (ValueError, RuntimeError):
        return math.inf


def truncation(system: System) -> Tensor:
    """(smearings, cutoffs) relative RMS error of forces for want of the pairs beyond a cutoff.

    All methods share it, and it does not depend on the system's size. In a crystal it does not fall steadily with the
    cutoff, for a sphere of ions is more or less neutral.
    """
    system = system.to("cpu", torch.float64)
    i, j, shifts = system.neighbours(LARGEST_CUTOFF + 3.0, full=True)
    d = system.positions[j] - system.positions[i] + shifts.double() @ system.cell
    r = torch.linalg.vector_norm(d, dim=1)
    shell = torch.bucketize(r, torch.tensor(CUTOFFS, dtype=torch.float64))  # beyond how many cutoffs a pair lies
    i, j, d, r, shell = (part[shell > 0] for part in (i, j, d, r, shell))
    n, rows = len(system.positions), []
    for smearing in SMEARINGS:
        x = r / (math.sqrt(2.0) * smearing)
        slope = (torch.erfc(x) / r + math.sqrt(2.0 / math.pi) / smearing * torch.exp(-x * x)) / r**2
        pull = (COULOMB_CONSTANT * system.charges[i] * system.charges[j] * slope)[:, None] * d
        missing = d.new_zeros((len(CUTOFFS) + 1) * n, 3).index_add_(0, shell * n + i, pull)
        missing = missing.view(len(CUTOFFS) + 1, n, 3).flip(0).cumsum(dim=0).flip(0)[1:]
        rows.append((missing**2).sum(dim=(1, 2)).sqrt())
    return torch.stack(rows) / torch.linalg.vector_norm(exact(system)[1])


def reciprocal_errors(peer, sample: System, forces: Tensor, resolution: dict, tolerance: float) -> Tensor:
    """(smearings,) relative RMS error of forces at a resolution with all pairs that matter; infinite where it is large.

    Measured at every third smearing, from the largest down until the tolerance is clearly missed, and interpolated.
    """
    known = {}
    for k in range(len(SMEARINGS) - 1, -1, -3):
        parameters = {"cutoff": min(LARGEST_CUTOFF, 5.5 * SMEARINGS[k]), "smearing": SMEARINGS[k], **resolution}
        known[k] = error(peer, sample, forces, parameters)
        if known[k] > 4.0 * tolerance:
            break
    found = torch.full((len(SMEARINGS),), math.inf, dtype=torch.float64)
    points = sorted(known)
    found[points[0] :] = torch.from_numpy(
        np.exp(np.interp(range(points[0], len(SMEARINGS)), points, np.log([known[k] for k in points])))
    )
    return found


def smallest_cutoff(beyond: Tensor, peer, sample, forces, resolution: dict, tolerance: float) -> dict | None:
    """The smallest cutoff, and its smearing, for which the two errors together keep the tolerance; None if none do.

    Args:
        beyond: (smearings, cutoffs) ``truncation``.
    """
    reciprocal = reciprocal_errors(peer, sample, forces, resolution, tolerance)
    total = torch.sqrt(beyond**2 + reciprocal[:, None] ** 2)
    sound = (total.min(dim=0).values <= 0.97 * tolerance).nonzero()
    if not len(sound):
        return None
    column = int(sound[0])
    return {"cutoff": CUTOFFS[column], "smearing": SMEARINGS[int(total[:, column].argmin())], **resolution}


def tune(
    peer: type[CoulombPeer], system: System, sample: System, beyond: Tensor, tolerance: float, keep: int = 8
) -> list[tuple[float, dict]]:
    """Parameters that keep the tolerance, and the seconds they take with ``system``, the fastest first.

    At every resolution the smallest cutoff is found with ``sample``, a smaller system of the same density; what the
    package's own tuning proposes is tried, too. The ``keep`` fastest of these are timed with the system itself.

    Args:
        beyond: (smearings, cutoffs) ``truncation`` of a system of this density.
    """
    forces = exact(sample)[1]
    found = [
        smallest_cutoff(beyond, peer, sample, forces, resolution, tolerance) for resolution in peer.resolutions(sample)
    ]
    rms = float((forces**2).sum(dim=1).mean().sqrt())
    found.extend(peer.suggestions(sample, tolerance * rms))
    sound = [parameters for parameters in found if parameters and error(peer, sample, forces, parameters) <= tolerance]
    fastest = sorted(sound, key=lambda parameters: _seconds(peer(sample, **parameters)))[:keep]
    timed = [(_seconds(peer(system, **parameters)), parameters) for parameters in fastest]
    return sorted(timed, key=lambda pair: pair[0])


def _seconds(function: Callable, calls: int = 4) -> float:
    """The shortest of some calls after the first: least disturbed by whatever else the machine does."""
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def run_coulomb(
    repeat: int = 8,
    *,
    contestants: Sequence[type[CoulombPeer]] = PEERS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = TOLERANCE,
    sample: int | None = None,
    reference: Tensor | None = None,
    seconds: float = 10.0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict:
    """Tune, check and time the contestants with 8 ``repeat``^3 ions; the first that runs is what others are compared
    with.

    Parameters are searched with 8 ``sample``^3 ions (default: at most 6^3 cells, a power of two fewer than ``repeat``
    along each axis, so that meshes have the same spacings), and then made safer, 1 % at a time, until they keep the
    tolerance with the system itself. A contestant that cannot is reported and not timed.

    Args:
        reference: (N, 3) forces, if they are known already.
    """
    if sample is None:
        sample = repeat
        while sample > 6 and sample % 2 == 0:
            sample //= 2
    system, small = rock_salt(repeat, dtype, device), rock_salt(sample, dtype, device)
    forces = exact(rock_salt(repeat))[1] if reference is None else reference
    beyond = truncation(rock_salt(min(sample, 4)))
    running, absent, errors, parameters = {}, {}, {}, {}
    for peer in contestants:
        if reason := peer.obstacle():
            absent[peer.name] = reason
            say(f"  {peer.name}: left out, {reason}")
            continue
        tuned = tune(peer, system, small, beyond, tolerance)
        if not tuned:
            absent[peer.name] = f"no parameters give forces to {tolerance:.0e}"
            say(f"  {peer.name}: NOT TIMED, {absent[peer.name]}")
            continue
        found = tuned[0][1]
        while (off := error(peer, system, forces, found)) > tolerance and found["cutoff"] < LARGEST_CUTOFF:
            found = found | {key: 1.01 * found[key] for key in ("cutoff", "smearing")}
        parameters[peer.name], errors[peer.name] = found, {"forces": off}
        say(f"  {peer.name}: {found}, error {off:.2e}")
        if off > tolerance:
            say(f"  {peer.name}: NOT TIMED, relative error {off:.1e}")
            continue
        running[peer.name] = peer(system, **found)
        for variant, options in peer.variants.items():
            running[f"{peer.name}, {variant}"] = peer(system, **found, **options)
    times, peaks = {}, {}
    if running:
        times["energy and forces"] = alternate(running, device, seconds)
        peaks = {name: peak_bytes(function, device) for name, function in running.items()}
        for name, row in times["energy and forces"].items():
            say(f"  {name}: {row['ms']['median']:.3g} ms, {(peaks[name] or 0) / 2**20:.0f} MiB")
    return {
        "problem": system.name,
        "atoms": len(system.positions),
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": tolerance,
        "left_out": absent,
        "versions": {peer.distribution: peer.version() for peer in contestants},
        "parameters": parameters,
        "relative_errors": errors,
        "peak_bytes": peaks,
        "times": times,
    }


def peak_bytes(function: Callable, device: str = "cpu") -> int | None:
    """Memory that a call needs on top of what is there before it; None where the system does not tell."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is not there
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the highest value so far is that of now
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(key)).split()[1])


def molecules(count: int = 1024, smallest: int = 3, largest: int = 20) -> Equilibration:
    """Random molecules of H, C, N and O: each atom 1.0 to 1.6 Å from an earlier one, none nearer than 0.9 Å to any;
    charges of -1, 0 and +1. Electronegativities vary by 0.5 eV/e, as they do when a network predicts them."""
    rng = np.random.default_rng(0)
    symbols, positions, ptr = [], [], [0]
    for size in rng.integers(smallest, largest + 1, count):
        atoms = np.zeros((1, 3))
        while len(atoms) < size:
            direction = rng.normal(size=3)
            new = atoms[rng.integers(len(atoms))] + rng.uniform(1.0, 1.6) * direction / np.linalg.norm(direction)
            if np.linalg.norm(atoms - new, axis=1).min() > 0.9:
                atoms = np.vstack([atoms, new])
        symbols.extend(rng.choice(["H", "C", "N", "O"], size))
        positions.append(atoms)
        ptr.append(ptr[-1] + int(size))
    total = rng.integers(-1, 2, count)
    name = f"{count:,} molecules of {smallest} to {largest} atoms"
    return _equilibration(name, symbols, np.concatenate(positions), ptr, total, rng)


def equilibration_cell(repeat: int = 5) -> Equilibration:
    """8 ``repeat``^3 atoms of rattled NaCl, neutral; five cells along each axis give 1,000 atoms."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    rng, name = np.random.default_rng(0), f"NaCl, {len(atoms):,} atoms"
    cell = torch.tensor(atoms.cell.array)
    return _equilibration(name, atoms.symbols, atoms.positions, [0, len(atoms)], [0], rng, cell)


def _equilibration(name, symbols, positions, ptr, total, rng, cell=None) -> Equilibration:
    chi, hardness = torch.tensor([ELEMENTS[symbol] for symbol in symbols], dtype=torch.float64).unbind(dim=1)
    widths = [ase.data.covalent_radii[ase.data.atomic_numbers[symbol]] for symbol in symbols]
    return Equilibration(
        name,
        torch.as_tensor(positions),
        torch.tensor(ptr),
        torch.as_tensor(np.asarray(total, float)),
        chi + torch.from_numpy(rng.normal(scale=0.5, size=len(chi))),
        hardness.contiguous(),
        torch.tensor(widths, dtype=torch.float64),
        cell,
    )


def exact_charges(problem: Equilibration, positions: Tensor) -> Tensor:
    """(N,) charges by dense solves in float64, one structure at a time; differentiable."""
    charges = []
    for structure, total in enumerate(problem.total):
        some = slice(*problem.ptr[structure : structure + 2].tolist())
        if problem.cell is None:
            matrix = molecular_matrix(positions[some], problem.widths[some], problem.hardness[some])
        else:
            matrix = periodic_matrix(problem, positions)
        rhs = torch.cat([-problem.chi[some], total[None]])
        charges.append(torch.linalg.solve(bordered(matrix, torch.ones_like(problem.chi[some])), rhs)[:-1])
    return torch.cat(charges)


def periodic_matrix(problem: Equilibration, positions: Tensor, accuracy: float = 1e-9) -> Tensor:
    """(N, N) k A + J of a cell by Ewald sums, up to what charges that sum to zero do not see."""
    reach = math.sqrt(-2.0 * math.log(accuracy))
    widest = math.sqrt(2.0) * float(problem.widths.max())
    eta = 0.75 * widest  # so that neither sum is long
    system = System("", problem.positions, problem.cell, problem.chi)
    i, j, shifts = system.neighbours(reach * widest, full=True)
    r = torch.linalg.vector_norm(positions[j] - positions[i] + shifts.double() @ problem.cell, dim=1)
    gamma = torch.sqrt(problem.widths[i] ** 2 + problem.widths[j] ** 2)
    near = (torch.erf(r / (math.sqrt(2.0) * gamma)) - torch.erf(r / (math.sqrt(2.0) * eta))) / r
    n = len(positions)
    matrix = positions.new_zeros(n * n).index_add(0, i * n + j, near).view(n, n)
    waves = system.waves(reach / eta)
    phase, square = positions @ waves.T, (waves**2).sum(dim=1)
    weight = 8.0 * math.pi / torch.linalg.det(problem.cell).abs() * torch.exp(-0.5 * eta**2 * square) / square
    for table in (phase.cos(), phase.sin()):
        matrix = matrix + (table * weight) @ table.T
    alone = 1.0 / (problem.widths * math.sqrt(math.pi)) - math.sqrt(2.0 / math.pi) / eta
    return COULOMB_CONSTANT * (matrix + torch.diag(alone)) + torch.diag(problem.hardness)


def run_equilibration(
    problem: Equilibration,
    *,
    contestants: Sequence[type[EquilibrationPeer]] = EQUILIBRATION_PEERS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = TOLERANCE,
    seconds: float = 10.0,
    say: Callable[[str], None] = print,
) -> dict:
    """Check and time the contestants; the first that runs is what others are compared with.

    Phases: ``charges``; ``charges and gradient``, which adds the gradient of sum_i c_i q_i by positions for random c;
    and ``solve``, the charges from matrices made beforehand. A contestant whose charges or gradient miss the tolerance
    is reported and not timed.
    """
    probe = torch.randn(len(problem.chi), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def charges_and_gradient(function: Callable, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        positions = problem.positions.to(dtype, copy=True).requires_grad_(True)
        charges = function(positions)
        return charges.detach(), torch.autograd.grad((charges * probe.to(charges.dtype)).sum(), positions)[0]

    expected = charges_and_gradient(lambda positions: exact_charges(problem, positions), torch.float64)
    running, absent, errors = {}, {}, {}
    for peer in contestants:
        if reason := peer.obstacle(problem):
            absent[peer.name] = reason
            say(f"  {peer.name}: left out, {reason}")
            continue
        contestant = peer(problem.to(dtype))
        found = charges_and_gradient(contestant, dtype)
        errors[peer.name] = {
            key: relative_rms(value, reference)
            for key, value, reference in zip(("charges", "gradient"), found, expected, strict=True)
        }
        if max(errors[peer.name].values()) <= tolerance:
            running[peer.name] = contestant
        else:
            say(f"  {peer.name}: NOT TIMED, relative errors {errors[peer.name]}")

    positions = problem.positions.to(dtype)

    def without_gradient(function: Callable, *arguments) -> Callable:
        def call():
            with torch.no_grad():
                return function(*arguments)

        return call

    phases = {"charges": {name: without_gradient(peer, positions) for name, peer in running.items()}}
    phases["charges and gradient"] = {
        name: lambda peer=peer: charges_and_gradient(peer, dtype) for name, peer in running.items()
    }
    phases["solve"] = {
        name: without_gradient(peer.solve, without_gradient(peer.prepare, positions)())
        for name, peer in running.items()
        if peer.separable
    }
    times = {}
    for phase, runs in phases.items():
        if runs:
            times[phase] = alternate(runs, seconds=seconds)
            line = ", ".join(f"{name} {row['ms']['median']:.3g} ms" for name, row in times[phase].items())
            say(f"  {phase}: {line}")
    return {
        "problem": f"charge equilibration, {problem.name}",
        "atoms": len(problem.chi),
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": tolerance,
        "left_out": absent,
        "versions": {peer.distribution: peer.version() for peer in contestants},
        "relative_errors": errors,
        "times": times,
    }
