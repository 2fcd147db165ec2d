"""fastlr: fast inference for equivariant potentials with global charge equilibration.

    import fastlr
    potential = fastlr.load("aqueous-xtb")
    prediction = potential.predict(atoms)

Names are imported on first use, so that ``import fastlr`` itself stays cheap.
"""

import os
from importlib import import_module

# PyTorch keeps tensors of more than 2 MiB in huge pages if it finds this before it makes the first tensor: large meshes
# are then transformed in half the time. Set it to 0 to have small pages.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

_EXPORTS = {
    "load": "fastlr.potential",
    "Potential": "fastlr.potential",
    "Prediction": "fastlr.potential",
    "Graph": "fastlr.graph",
    "FastlrError": "fastlr.errors",
    "available_models": "fastlr.pretrained",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'fastlr' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
