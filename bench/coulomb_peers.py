"""Coulomb sums of public packages, each behind the same small interface.

Units: Å, elementary charges, eV. Every package writes the splitting of 1/r in its own letters; here the width of the
Gaussian is ``smearing`` (Å), so that a pair interacts by erfc(r / sqrt2 smearing) / r, and nvalchemi's alpha is
1 / (sqrt2 smearing).
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT

from .peers import Peer
from .point_charges import System


class CoulombPeer(Peer):
    """Energy and forces of a system by one method. All that an unchanged neighbour list allows is done in advance.

    A method has three kinds of parameters: the radius ``cutoff`` (Å) of the real-space sum, the ``smearing`` (Å), which
    costs nothing, and its own ``resolution`` of the reciprocal sum. One that chooses them itself has no resolutions,
    and its parameters are those of its ``suggestions``.

    Attributes:
        variants: further arguments of the constructor that do not change results, and may change times.
    """

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
    def safer(cls, parameters: dict) -> dict:
        """Parameters that are a little more accurate."""
        return parameters | {key: 1.01 * parameters[key] for key in ("cutoff", "smearing")}


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
