"""Coulomb sums beside public packages: equally accurate, checked, then timed in turn.

Energy and forces of point charges in rattled NaCl. What they cost depends on how accurate they are, so every contestant
is first tuned to the same relative RMS error of forces, 1e-4 unless told otherwise, and to the fastest way there is to
it. The reference is a sum of its own, ``point_charges.exact``.

A contestant is a subclass of ``coulomb_peers.CoulombPeer``; ``run_coulomb(..., contestants=[...])`` takes any number of
them. It offers
    ``name``, ``distribution``, ``module`` and ``obstacle()``: what it is, and why it cannot run, if so;
    ``__init__(system, cutoff, smearing, **resolution)``: all that stays the same while atoms move little, such as lists
        of pairs (``system.neighbours``), wave vectors and tables; not timed;
    ``__call__()``: energy (eV) and forces (N, 3) (eV/Å) from ``system.positions`` anew; timed;
    ``resolutions(system)``: the settings of its reciprocal sum to try, as keywords of ``__init__`` that mean the same
        in a larger system (spacings and cutoffs, not numbers of points). With each, tuning looks for the smallest
        ``cutoff`` for which some ``smearing`` keeps the tolerance;
    ``suggestions(system, accuracy)``: complete sets of parameters, as its own tuning proposes them. A method without
        parameters to search gives all its sets here, and no resolutions; these may be other keywords than above, if
        ``safer(parameters)`` knows them;
    ``variants``: further keywords to be timed, for example of a compiled form.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastlr.numerics import relative_rms

from .coulomb_peers import PEERS, CoulombPeer
from .coulomb_tuning import error, truncation, tune
from .electrostatics_fastlr import COULOMB
from .peers import ours
from .point_charges import System, exact, rock_salt
from .timing import alternate, over_each, peak_bytes

TOLERANCE = 1e-4  # relative RMS error of forces
MOST_STEPS = 40  # towards safer parameters, see ``CoulombPeer.safer``
CONTESTANTS = (*PEERS, *COULOMB)


def run_coulomb(
    repeat: int = 8,
    *,
    contestants: Sequence[type[CoulombPeer]] = CONTESTANTS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = TOLERANCE,
    sample: int | None = None,
    reference: tuple[Tensor, Tensor] | None = None,
    seconds: float = 10.0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict:
    """Tune, check and time the contestants with 8 ``repeat``^3 ions; the first that runs is what others are compared
    with.

    Parameters are searched with 8 ``sample``^3 ions (default: at most 6^3 cells, a power of two fewer than ``repeat``
    along each axis, so that meshes have the same spacings), and then made safer, step by step, until they keep the
    tolerance with the system itself. A contestant that cannot, or whose energy misses it, is reported and not timed.

    Args:
        reference: energy and forces (N, 3) of ``exact``, if they are known already.
    """
    if sample is None:
        sample = repeat
        while sample > 6 and sample % 2 == 0:
            sample //= 2
    system, small = rock_salt(repeat, dtype, device), rock_salt(sample, dtype, device)
    expected = exact(rock_salt(repeat)) if reference is None else reference
    beyond = truncation(rock_salt(min(sample, 4)))
    running, absent, errors, parameters, tuning = {}, {}, {}, {}, {}
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
        tuning[peer.name] = [{"ms": 1e3 * best, **given} for best, given in tuned]
        found = safe(peer, system, expected[1], tuned[0][1], tolerance)
        parameters[peer.name] = found
        forms = {peer.name: {}} | {f"{peer.name}, {variant}": options for variant, options in peer.variants.items()}
        for name, options in forms.items():
            contestant = peer(system, **(found | options))
            errors[name] = deviations(contestant(), expected)
            say(f"  {name}: {found}, relative errors {errors[name]}")
            # written so that what is not a number is wrong, too
            if all(off <= tolerance for off in errors[name].values()):
                running[name] = contestant
            else:
                say(f"  {name}: NOT TIMED, relative errors {errors[name]}")
    times, peaks = {}, {}
    if running:
        times["energy and forces"] = alternate(running, device, seconds, over_each=ours(running))
        peaks = {name: peak_bytes(function, device) for name, function in running.items()}
        for name, row in times["energy and forces"].items():
            say(f"  {name}: {row['ms']['median']:.3g} ms, {(peaks[name] or 0) / 2**20:.0f} MiB{over_each(row)}")
    return {
        "problem": system.name,
        "atoms": len(system.positions),
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": tolerance,
        "left_out": absent,
        "versions": {peer.distribution: peer.version() for peer in contestants},
        "parameters": parameters,
        "tuning": tuning,
        "relative_errors": errors,
        "peak_bytes": peaks,
        "times": times,
    }


def safe(peer: type[CoulombPeer], system: System, forces: Tensor, parameters: dict, tolerance: float) -> dict:
    """Parameters made safer until forces keep the tolerance, or until there is little hope."""
    for _ in range(MOST_STEPS):
        if error(peer, system, forces, parameters) <= tolerance:
            break
        parameters = peer.safer(parameters)
    return parameters


def deviations(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Relative errors of energy and forces."""
    energy, reference = float(found[0]), float(expected[0])
    return {"energy": abs(energy - reference) / abs(reference), "forces": relative_rms(found[1].cpu(), expected[1])}
