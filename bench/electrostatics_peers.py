"""Coulomb sums and charge equilibration of public packages, each behind the same small interface.

Units: Å, elementary charges, eV. Every package writes the splitting of 1/r in its own letters; here the width of the
Gaussian is ``smearing`` (Å), so that a pair interacts by erfc(r / sqrt2 smearing) / r, and nvalchemi's and mlipops'
alpha is 1 / (sqrt2 smearing).
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import torch
import vesin
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT


@dataclass(frozen=True, eq=False)
class System:
    """Point charges in a cell that is periodic in three directions.

    Attributes:
        positions: (N, 3) Å.
        cell: (3, 3) Å, rows are lattice vectors.
        charges: (N,) e.
    """

    name: str
    positions: Tensor
    cell: Tensor
    charges: Tensor

    def to(self, *args) -> "System":
        """On another device or in another precision."""
        return replace(self, **{key: getattr(self, key).to(*args) for key in ("positions", "cell", "charges")})

    @lru_cache(maxsize=1)  # noqa: B019  tuning asks for the same list many times in a row
    def neighbours(self, cutoff: float, full: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms i and j (P,) int64 and cell shifts of j (P, 3) int32, sorted by i; every pair once, or both ways."""
        positions, cell = (tensor.detach().double().cpu().numpy() for tensor in (self.positions, self.cell))
        i, j, shifts = vesin.NeighborList(cutoff=cutoff, full_list=full, sorted=True).compute(
            positions, cell, True, quantities="ijS"
        )
        columns = (i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int32))
        return tuple(torch.from_numpy(column).to(self.positions.device) for column in columns)

    def waves(self, k_cutoff: float) -> Tensor:
        """(K, 3) wave vectors 0 < |k| < ``k_cutoff`` (1/Å), of k and -k the one."""
        reach = (torch.linalg.vector_norm(self.cell, dim=1) * (k_cutoff / (2.0 * math.pi))).ceil().long().tolist()
        index = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in reach)).to(self.cell)
        index = index[len(index) // 2 + 1 :]  # in lexicographic order, the second half are the negatives of the first
        waves = 2.0 * math.pi * index @ torch.linalg.inv(self.cell).T
        return waves[torch.linalg.vector_norm(waves, dim=1) < k_cutoff].contiguous()


class CoulombPeer(ABC):
    """Energy and forces of a system by one method. All that an unchanged neighbour list allows is done in advance.

    A method has three kinds of parameters: the radius ``cutoff`` (Å) of the real-space sum, the ``smearing`` (Å), which
    costs nothing, and its own ``resolution`` of the reciprocal sum.

    Attributes:
        name: as in tables.
        distribution: the name on PyPI.
        variants: further arguments of the constructor that do not change results, and may change times.
    """

    name: str
    distribution: str
    module: str
    variants: dict[str, dict] = {}  # noqa: RUF012

    @abstractmethod
    def __init__(self, system: System, cutoff: float, smearing: float, **resolution): ...

    @abstractmethod
    def __call__(self) -> tuple[Tensor, Tensor]:
        """Energy in eV, and forces (N, 3) in eV/Å."""

    @classmethod
    @abstractmethod
    def resolutions(cls, system: System) -> list[dict]:
        """Resolutions to try in tuning. They mean the same in a larger system of the same density."""

    @classmethod
    def suggestions(cls, system: System, accuracy: float) -> Iterator[dict]:
        """All parameters, as the package's own tuning proposes them for RMS forces of this error (eV/Å)."""
        return iter(())

    @classmethod
    def obstacle(cls) -> str | None:
        """Why it cannot run here."""
        return None if find_spec(cls.module) else f"{cls.distribution} is not installed"

    @classmethod
    def version(cls) -> str | None:
        return _version(cls.distribution)


class TorchPME(CoulombPeer):
    """torch-pme (Loche et al., J. Chem. Phys. 162, 142501, 2025): potentials of all atoms, and forces by autograd.

    A half list of pairs; distances are the caller's, so they are computed here and differentiated, too. With
    ``compiled`` all of it goes through torch.compile.
    """

    distribution, module = "torch-pme", "torchpme"
    variants = {"compiled": {"compiled": True}}  # noqa: RUF012
    calculator: str
    tuner: str
    nodes: Sequence[int] = ()

    def __init__(self, system: System, cutoff: float, smearing: float, compiled: bool = False, **resolution):
        import torchpme

        potential = torchpme.CoulombPotential(smearing=smearing, prefactor=COULOMB_CONSTANT)
        options, inputs = self.options(system, **resolution)
        calculator = getattr(torchpme, self.calculator)(potential, full_neighbor_list=False, **options)
        calculator = calculator.to(device=system.positions.device, dtype=system.positions.dtype)
        i, j, shifts = system.neighbours(cutoff, full=False)
        pairs, offsets = torch.stack([i, j], dim=1), shifts.to(system.cell) @ system.cell
        charges, cell = system.charges[:, None], system.cell

        def energy(positions: Tensor) -> Tensor:
            distances = torch.linalg.vector_norm(positions[j] - positions[i] + offsets, dim=1)
            return (calculator(charges, cell, positions, pairs, distances, **inputs) * charges).sum()

        self.positions = system.positions
        self.energy = torch.compile(energy) if compiled else energy

    @classmethod
    def options(cls, system: System, spacing: float | None = None, **given) -> tuple[dict, dict]:
        """Arguments of the constructor and of the call. A ``spacing`` is that of the mesh: it has 2^n points."""
        if spacing is None:
            return given, {}
        # the calculator takes twice the length over a spacing, plus one, and rounds up to a power of two; 3/4 of the
        # power that is wanted is safely below it and above the one before
        return given | {"mesh_spacing": 2.0 * spacing / 0.75}, {}

    @classmethod
    def resolutions(cls, system: System) -> list[dict]:
        length = float(torch.linalg.vector_norm(system.cell, dim=1).max())
        meshes = [2**n for n in range(3, 9) if 0.25 < length / 2**n < 2.5]
        return [{"spacing": length / mesh, "interpolation_nodes": nodes} for mesh in meshes for nodes in cls.nodes]

    @classmethod
    def suggestions(cls, system: System, accuracy: float) -> Iterator[dict]:
        import torchpme

        for cutoff in (5.0, 7.0, 9.0, 11.0):
            i, j, shifts = system.neighbours(cutoff, full=False)
            offsets = shifts.to(system.cell) @ system.cell
            distances = torch.linalg.vector_norm(system.positions[j] - system.positions[i] + offsets, dim=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no mesh is fine enough
                smearing, resolution, _ = getattr(torchpme.tuning, cls.tuner)(
                    system.charges[:, None], system.cell, system.positions, cutoff, torch.stack([i, j], dim=1),
                    distances, accuracy=accuracy / COULOMB_CONSTANT,
                )  # fmt: skip
            yield {"cutoff": cutoff, "smearing": smearing, **resolution}

    def __call__(self):
        positions = self.positions.detach().requires_grad_(True)
        energy = self.energy(positions)
        (gradient,) = torch.autograd.grad(energy, positions)
        return energy.detach(), -gradient


class TorchPMEEwald(TorchPME):
    """Its sum over wave vectors. Unless told which, it takes a box of them; told a sphere, it needs half as many."""

    name = "torch-pme Ewald"
    calculator, tuner = "EwaldCalculator", "tune_ewald"

    @classmethod
    def options(cls, system, k_cutoff: float | None = None, **given):
        if k_cutoff is None:
            return given, {}
        half = system.waves(k_cutoff)
        return {"lr_wavelength": 2.0 * math.pi / k_cutoff}, {"kvectors": torch.cat([half, -half])}

    @classmethod
    def resolutions(cls, system):
        return [{"k_cutoff": 0.8 * 1.1**n} for n in range(10)]


class TorchPMEMesh(TorchPME):
    """Its particle mesh Ewald method with Lagrange interpolation."""

    name = "torch-pme PME"
    calculator, tuner = "PMECalculator", "tune_pme"
    nodes = (4, 5, 6, 7)


class TorchPMEP3M(TorchPME):
    """Its particle-particle particle-mesh method with B-splines."""

    name = "torch-pme P3M"
    calculator, tuner = "P3MCalculator", "tune_p3m"
    nodes = (3, 4, 5)


class Nvalchemi(CoulombPeer):
    """nvalchemi-toolkit-ops: kernels in Warp, which on a CPU run in one thread; meshes through torch.fft.

    A full list of pairs in rows. Forces are the direct output, which is deprecated in favour of autograd, and faster.
    """

    distribution, module = "nvalchemi-toolkit-ops", "nvalchemiops"

    def __init__(self, system: System, cutoff: float, smearing: float, **resolution):
        i, j, shifts = system.neighbours(cutoff, full=True)
        counts = torch.bincount(i, minlength=len(system.positions))
        self.arguments = {
            "positions": system.positions,
            "charges": system.charges,
            "cell": system.cell,
            "alpha": torch.full((1,), 1.0 / (math.sqrt(2.0) * smearing)).to(system.positions),
            "neighbor_list": torch.stack([i, j]).int(),
            "neighbor_ptr": torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(),
            "neighbor_shifts": shifts,
            "compute_forces": True,
            "energy_reduction": "system",
            **self.options(system, **resolution),
        }

    @abstractmethod
    def function(self) -> Callable: ...

    @abstractmethod
    def options(self, system: System, **resolution) -> dict:
        """Arguments that depend on the cell alone."""

    def __call__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            energy, forces = self.function()(**self.arguments)
        return COULOMB_CONSTANT * energy.sum(), COULOMB_CONSTANT * forces


class NvalchemiEwald(Nvalchemi):
    """Its sum over wave vectors: those of a sphere, where its own generator makes a box."""

    name = "nvalchemi Ewald"

    def function(self):
        from nvalchemiops.torch.interactions.electrostatics import ewald_summation

        return ewald_summation

    def options(self, system, k_cutoff: float):
        return {"k_vectors": system.waves(k_cutoff)}

    @classmethod
    def resolutions(cls, system):
        return TorchPMEEwald.resolutions(system)

    @classmethod
    def suggestions(cls, system, accuracy):
        from nvalchemiops.torch.interactions.electrostatics import estimate_ewald_parameters

        for requested in _relative_accuracies():
            found = estimate_ewald_parameters(system.positions, system.cell, accuracy=requested)
            yield {
                "cutoff": float(found.real_space_cutoff),
                "smearing": 1.0 / (math.sqrt(2.0) * float(found.alpha)),
                "k_cutoff": float(found.reciprocal_space_cutoff),
            }


class NvalchemiPME(Nvalchemi):
    """Its particle mesh Ewald method with B-splines; what depends on the mesh and the cell alone is made once."""

    name = "nvalchemi PME"

    def function(self):
        from nvalchemiops.torch.interactions.electrostatics import particle_mesh_ewald

        return particle_mesh_ewald

    def options(self, system, spacing: float, spline_order: int):
        from nvalchemiops.torch.interactions.electrostatics import compute_bspline_moduli_1d, generate_k_vectors_pme

        mesh = tuple((torch.linalg.vector_norm(system.cell, dim=1) / spacing).round().long().tolist())
        waves, squares = generate_k_vectors_pme(system.cell, mesh)
        frequencies = (torch.fft.fftfreq, torch.fft.fftfreq, torch.fft.rfftfreq)
        moduli = {
            f"moduli_{axis}": compute_bspline_moduli_1d((frequency(n) * n).to(system.cell), n, spline_order)
            for axis, frequency, n in zip("xyz", frequencies, mesh, strict=True)
        }
        return {
            "mesh_dimensions": mesh,
            "spline_order": spline_order,
            "k_vectors": waves,
            "k_squared": squares,
            "cell_inv_t": torch.linalg.inv(system.cell).T[None].contiguous(),
            "volume": torch.linalg.det(system.cell).abs().reshape(1),
            **moduli,
        }

    @classmethod
    def resolutions(cls, system):
        length = float(torch.linalg.vector_norm(system.cell, dim=1).max())
        meshes = [n for n in range(8, 256) if _is_smooth(n) and 0.5 < length / n < 1.7]
        return [{"spacing": length / mesh, "spline_order": order} for mesh in meshes for order in (4, 5, 6)]

    @classmethod
    def suggestions(cls, system, accuracy):
        from nvalchemiops.torch.interactions.electrostatics import estimate_pme_parameters

        for requested in _relative_accuracies():
            for cutoff in (5.0, 7.0, 9.0, 11.0):
                found = estimate_pme_parameters(
                    system.positions, system.cell, accuracy=requested, real_space_cutoff=cutoff
                )
                yield {
                    "cutoff": cutoff,
                    "smearing": 1.0 / (math.sqrt(2.0) * float(found.alpha)),
                    "spacing": float(found.mesh_spacing.max()),
                    "spline_order": 5,
                }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _relative_accuracies() -> list[float]:
    """What to ask of estimators whose accuracy is not that of forces: an order of magnitude more each time."""
    return [10.0**-n for n in range(2, 8)]


def _is_smooth(n: int) -> bool:
    """Only the factors 2, 3, 5, 7, for which Fourier transforms are fast."""
    for factor in (2, 3, 5, 7):
        while n % factor == 0:
            n //= factor
    return n == 1


PEERS: tuple[type[CoulombPeer], ...] = (TorchPMEEwald, TorchPMEMesh, TorchPMEP3M, NvalchemiEwald, NvalchemiPME)


@dataclass(frozen=True, eq=False)
class Equilibration:
    """Charges wanted: of each structure those that minimise sum_i (chi_i q_i + J_i q_i^2 / 2) + (k / 2) q' A q under a
    given sum, with A of Gaussian charges rho ~ exp(-r^2 / 2 s_i^2): A_ij = erf(r / (sqrt2 g)) / r, g^2 = s_i^2 + s_j^2.

    Attributes:
        positions: (N, 3) Å.
        ptr: (B + 1,) first atom of each structure.
        total: (B,) sums of charges, e.
        chi: (N,) electronegativities, eV/e.
        hardness: (N,) J, eV/e^2.
        widths: (N,) s, Å.
        cell: (3, 3) Å of the only structure; None for molecules.
    """

    name: str
    positions: Tensor
    ptr: Tensor
    total: Tensor
    chi: Tensor
    hardness: Tensor
    widths: Tensor
    cell: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Equilibration":
        """All real numbers in another precision."""
        names = ("positions", "total", "chi", "hardness", "widths", "cell")
        return replace(self, **{key: value.to(dtype) for key in names if (value := getattr(self, key)) is not None})


class EquilibrationPeer(ABC):
    """One way to the charges of a problem.

    Attributes:
        name: as in tables.
        distribution: the name on PyPI.
        separable: it makes a matrix first, and then solves; ``prepare`` and ``solve`` are its two halves.
    """

    name: str
    distribution = "torch"
    module = "torch"
    separable = True

    def __init__(self, problem: Equilibration):
        self.problem = problem

    @abstractmethod
    def __call__(self, positions: Tensor) -> Tensor:
        """(N,) charges, differentiable by ``positions`` (N, 3)."""

    def prepare(self, positions: Tensor) -> object:
        """The matrices."""
        raise NotImplementedError

    def solve(self, prepared: object) -> Tensor:
        """(N,) charges, given the matrices."""
        raise NotImplementedError

    @classmethod
    def obstacle(cls, problem: Equilibration) -> str | None:
        """Why it cannot serve here."""
        return None if find_spec(cls.module) else f"{cls.distribution} is not installed"

    @classmethod
    def version(cls) -> str | None:
        return _version(cls.distribution)


class _Separable(EquilibrationPeer):
    def __call__(self, positions):
        return self.solve(self.prepare(positions))

    @classmethod
    def obstacle(cls, problem):
        return "serves molecules only" if problem.cell is not None else None


class Loop(_Separable):
    """A Python loop: one dense matrix and one torch.linalg.solve a molecule."""

    name = "loop of dense solves"

    def prepare(self, positions):
        problem, matrices = self.problem, []
        bounds = problem.ptr.tolist()
        for first, last in pairwise(bounds):
            some = slice(first, last)
            matrix = molecular_matrix(positions[some], problem.widths[some], problem.hardness[some])
            matrices.append(bordered(matrix, torch.ones_like(problem.chi[some])))
        return matrices

    def solve(self, prepared):
        problem, charges = self.problem, []
        for structure, matrix in enumerate(prepared):
            chi = problem.chi[problem.ptr[structure] : problem.ptr[structure + 1]]
            rhs = torch.cat([-chi, problem.total[structure : structure + 1]])
            charges.append(torch.linalg.solve(matrix, rhs)[:-1])
        return torch.cat(charges)


class Padded(_Separable):
    """All molecules padded to the largest: one batched torch.linalg.solve."""

    name = "padded batched solve"

    def __init__(self, problem):
        super().__init__(problem)
        counts = problem.ptr.diff()
        self.mask = torch.arange(int(counts.max()))[None, :] < counts[:, None]

    def _pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        padded = values.new_full((*self.mask.shape, *values.shape[1:]), fill)
        return padded.masked_scatter(self.mask.view(*self.mask.shape, *[1] * (values.ndim - 1)), values)

    def prepare(self, positions):
        # absent atoms: one on its own, of hardness one, far from all others
        problem, mask = self.problem, self.mask
        matrix = molecular_matrix(
            self._pad(positions), self._pad(problem.widths, 1.0), self._pad(problem.hardness, 1.0), mask
        )
        return bordered(matrix, mask.to(matrix.dtype))

    def solve(self, prepared):
        rhs = torch.cat([-self._pad(self.problem.chi), self.problem.total[:, None]], dim=1)
        return torch.linalg.solve(prepared, rhs)[:, :-1][self.mask]


def molecular_matrix(positions: Tensor, widths: Tensor, hardness: Tensor, mask: Tensor | None = None) -> Tensor:
    """(..., n, n) k A + J of isolated molecules; positions (..., n, 3); atoms outside ``mask`` (..., n) interact with
    none."""
    n = positions.shape[-2]
    itself = torch.eye(n, dtype=torch.bool)
    difference = positions[..., :, None, :] - positions[..., None, :, :]
    square = (difference * difference).sum(dim=-1)
    apart = ~itself if mask is None else ~itself & mask[..., :, None] & mask[..., None, :]
    r = torch.where(apart, square, 1.0).sqrt()  # no gradient of sqrt at zero
    widest = torch.sqrt(2.0 * (widths[..., :, None] ** 2 + widths[..., None, :] ** 2))
    pairs = torch.where(apart, COULOMB_CONSTANT * torch.erf(r / widest) / r, 0.0)
    return pairs + torch.diag_embed(hardness + COULOMB_CONSTANT / (widths * math.sqrt(math.pi)))


def bordered(matrix: Tensor, ones: Tensor) -> Tensor:
    """(..., n + 1, n + 1): the matrix with the constraint on the sum in its last row and column."""
    corner = ones.new_zeros(*ones.shape[:-1], 1)
    side = torch.cat([matrix, ones[..., None, :]], dim=-2)
    return torch.cat([side, torch.cat([ones, corner], dim=-1)[..., :, None]], dim=-1)


class Mlipops(EquilibrationPeer):
    """mlipops.ChargeEquilibration in a cell, by its Ewald matrix and a dense solve (or MINRES), in float32 only.

    Its model: chi and J as here, both in units of k (it has no Coulomb constant), radius sqrt2 s. It gives charges, and
    their derivatives by autograd; no energy. In mlipops 0.6.0 the matrix is not that of the model: the real-space terms
    are multiplied by 4 pi / V, too, the sum over half of the wave vectors lacks its factor of two, and an atom does not
    meet its own images; charges then depend on the splitting, and those of NaCl are off by a third and more. With
    ``corrected`` these three are put right, at the same cost. The cell must be rectangular, and no Gaussian may reach
    beyond its nearest images.
    """

    name = "mlipops"
    distribution = module = "mlipops"
    separable = False

    def __init__(
        self,
        problem: Equilibration,
        cutoff: float | None = None,
        smearing: float | None = None,
        k_cutoff: float | None = None,
        solver: str = "direct",
        corrected: bool = True,
    ):
        super().__init__(problem)
        single = problem.to(torch.float32)
        lengths = torch.linalg.vector_norm(single.cell, dim=1)
        # the fastest with which charges of rock salt and their gradients are accurate to 1e-4: matrices of wave vectors
        # times atoms take most of the time, so few wave vectors, and a long cutoff
        cutoff = cutoff or min(14.1, 0.5 * float(lengths.min()))
        smearing = smearing or cutoff / 4.8
        k_cutoff = k_cutoff or 3.9 / smearing
        if cutoff > 0.5 * float(lengths.min()):
            raise ValueError("mlipops knows the nearest image only: the cutoff must not exceed half of the cell")
        waves = (lengths * k_cutoff / (2.0 * math.pi)).ceil().long().tolist()
        system = System("", problem.positions, problem.cell, problem.chi)
        i, j, _ = system.neighbours(cutoff, full=False)
        self.equilibration = _mlipops_equilibration(corrected)(torch.stack([i, j], dim=1), cutoff, waves, smearing)
        self.arguments = {
            "electronegativity": single.chi / COULOMB_CONSTANT,
            "hardness": single.hardness / COULOMB_CONSTANT,
            "radius": math.sqrt(2.0) * single.widths,
            "total_charge": float(single.total),
            "box_vectors": single.cell,
            "solver": solver,
        }

    def __call__(self, positions):
        return self.equilibration(positions.float(), **self.arguments)

    @classmethod
    def obstacle(cls, problem):
        return super().obstacle(problem) or ("is compared for a cell" if problem.cell is None else None)


class MlipopsMinres(Mlipops):
    """The same matrix, and charges by MINRES to a residual of 1e-7."""

    name = "mlipops MINRES"

    def __init__(self, problem, **parameters):
        super().__init__(problem, solver="minres", **parameters)


def _mlipops_equilibration(corrected: bool) -> Callable:
    """A function that makes mlipops' module with a list of pairs made beforehand, its matrix corrected or as it is."""
    import mlipops

    class Pairs(mlipops.NeighborList):
        def __init__(self, pairs: Tensor, cutoff: float):
            super().__init__(cutoff=cutoff)
            self.pairs = pairs

        def forward(self, positions, box_vectors=None, batch=None):
            return self.pairs

    class Corrected(mlipops.ChargeEquilibration):
        def _compute_interactions_ewald(self, positions, hardness, radius, box_vectors, batch, num_systems):
            alpha, pairs = self.coulomb.alpha, self.coulomb.neighbor_list(positions, box_vectors, batch)
            i, j = pairs.unbind(dim=1)
            delta = mlipops.pairwise_displacements(positions, pairs, box_vectors)
            r = torch.linalg.vector_norm(delta, dim=1)
            values = (torch.erf(r * torch.rsqrt(radius[i] ** 2 + radius[j] ** 2)) - torch.erf(alpha * r)) / r
            near = values.new_zeros(len(positions), len(positions))
            near[i, j] = values
            near[j, i] = values
            inverse = torch.linalg.inv(box_vectors)
            k = self.coulomb.wave_indices @ (2.0 * torch.pi * inverse.T)
            phase = k @ positions.T
            square = (k * k).sum(dim=1)
            weight = torch.exp(-square / (4.0 * alpha**2)) / square
            far = torch.einsum("i,ij,ik->jk", weight, phase.cos(), phase.cos())
            far = far + torch.einsum("i,ij,ik->jk", weight, phase.sin(), phase.sin())
            alone = hardness + math.sqrt(2.0 / math.pi) / radius - 2.0 * alpha / math.sqrt(math.pi)
            return near + 8.0 * torch.pi * inverse.diag().prod() * far + torch.diag(alone)

    def make(pairs: Tensor, cutoff: float, waves: list[int], smearing: float):
        coulomb = mlipops.CoulombEwald(Pairs(pairs, cutoff), None, *waves, 1.0 / (math.sqrt(2.0) * smearing), 1.0)
        return (Corrected if corrected else mlipops.ChargeEquilibration)(coulomb)

    return make


EQUILIBRATION_PEERS: tuple[type[EquilibrationPeer], ...] = (Loop, Padded, Mlipops, MlipopsMinres)
