"""How exactly inference finds charges, from what the charges of a model are like.

Charges are wrong by what the equations are wrong by, over the hardness J. Coulomb sums of accuracy a leave out some
0.17 a / Å of A (see ``kernels.ewald.truncation`` for bounds), and sums in float32 some 1e-7 of J q + k A q, so that
charges of size q are wrong by about

    0.17 k a q / J,        SINGLE q / J.

Both are kept below ``CHARGES`` for the softest species of a model and for charges as large as its electronegativities
would make them alone, which is up to three times what they are beside each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastlr.constants import COULOMB_CONSTANT

CHARGES = 1e-6  # e, what charges may be off by in float32, at any atom
LEFT_OUT = 0.17  # 1/Å, beside the accuracy of Coulomb sums
COARSEST = 3e-6  # accuracy of Coulomb sums, for the sake of forces
SINGLE = 1.2e-6  # eV/e for a charge of one
# bound on the root-mean-square error of charges after an iteration, e; a few soft atoms may have some times that
TOLERANCE = {torch.float32: 3e-7, torch.float64: 1e-11}
PRODUCTS = 12  # of the Coulomb matrix for charges and their adjoint in dynamics, with a hardness of HARD
HARD = 8.0  # eV/e^2


@dataclass(frozen=True)
class Precision:
    """How charges are found.

    Attributes:
        accuracy: of Coulomb sums that is asked for at most.
        tolerance: of iterations, e.
        single: whether pair functions and sums over waves may be in float32.
        products: of the Coulomb matrix that are expected, which decide how the sums are split; zero for the split of
            training, so that predictions in float64 do not differ by what both leave out.
    """

    accuracy: float
    tolerance: float
    single: bool
    products: int

    @staticmethod
    def of(model: torch.nn.Module) -> Precision:
        """That of a ``NequIPLR``."""
        dtype, scale_shift = model.config.torch_dtype, model.electronegativity_scale_shift
        if dtype == torch.float64:
            return Precision(0.0, TOLERANCE[dtype], False, 0)
        least = float(model.equilibration.hardness.detach().min())
        lowest, highest = (float(end) for end in scale_shift.shift.detach().aminmax())
        spread = math.hypot(0.5 * (highest - lowest), float(scale_shift.scale.detach().abs().max()))
        size = max(spread / least, 1e-6)  # e
        accuracy = min(COARSEST, CHARGES * least / (LEFT_OUT * COULOMB_CONSTANT * size))
        products = round(PRODUCTS * math.sqrt(max(1.0, HARD / least)))
        return Precision(accuracy, TOLERANCE[dtype], SINGLE * size <= CHARGES * least, products)
