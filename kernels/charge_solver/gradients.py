"""What an energy that depends on equilibrated charges changes with."""

from typing import NamedTuple

from torch import Tensor


class ChargeGradients(NamedTuple):
    """Derivatives of an energy that depends on equilibrated charges.

    Attributes:
        position: (N, 3) eV/Å. strain: (B, 3, 3) eV. chi: (N,) by electronegativities, e.
        potential: (N,) by an external potential at each atom, e.
        total: (B,) by the total charge, eV/e; NaN where charges of fragments are given instead.
    """

    position: Tensor
    strain: Tensor
    chi: Tensor
    potential: Tensor
    total: Tensor
