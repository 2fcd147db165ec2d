"""Which couplings of the installed e3nn have the opposite sign of ours."""

from importlib.metadata import version

# of all (l1, l2, l3) up to degree 4, in versions before 0.5
OPPOSITE = {(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1), (1, 4, 4), (4, 1, 4), (4, 4, 1)}


def sign(l1: int, l2: int, l3: int) -> float:
    """Of e3nn's coefficients relative to ours; degrees up to 4."""
    old = tuple(map(int, version("e3nn").split(".")[:2])) < (0, 5)
    return -1.0 if old and (l1, l2, l3) in OPPOSITE else 1.0
