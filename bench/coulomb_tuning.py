"""The fastest parameters with which a Coulomb sum reaches a given accuracy of forces.

A sum in real space ends at a cutoff, and the error for want of the pairs beyond is the same for all methods
(``truncation``), computed once. What is left is the error of the reciprocal sum, measured with each resolution for a
range of smearings. Both together give the smallest cutoff that serves with a resolution; which resolution is the
fastest is then a matter of timing.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.numerics import relative_rms

from .coulomb_peers import CoulombPeer
from .machine import synchronize
from .point_charges import System, exact

SMEARINGS = tuple(0.7 * 1.03**n for n in range(63))  # Å, up to 4.4
CUTOFFS = tuple(3.5 * 1.01**n for n in range(183))  # Å, up to 21.4
LARGEST_CUTOFF = CUTOFFS[-1]


def error(peer: type[CoulombPeer], system: System, forces: Tensor, parameters: dict) -> float:
    """Relative RMS error of forces; infinite where the method refuses the parameters."""
    try:
        return relative_rms(peer(system, **parameters)()[1].cpu(), forces)
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
    times, device = [], "cuda" if torch.cuda.is_initialized() else "cpu"
    for _ in range(calls + 1):
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
