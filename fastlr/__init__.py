"""fastlr: fast inference for equivariant potentials with global charge equilibration.

    import fastlr
    potential = fastlr.load("aqueous-xtb")
    prediction = potential.predict(atoms)

Names are imported on first use, so that ``import fastlr`` itself stays cheap.
"""

import gc
import os
import sys
from importlib import import_module
from types import ModuleType

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
        return getattr(_imported(_EXPORTS[name]), name)
    raise AttributeError(f"module 'fastlr' has no attribute '{name}'")


def _imported(module: str) -> ModuleType:
    """Import a module, and PyTorch with it, without a look for garbage among the 200,000 objects that PyTorch makes.

    These live as long as the process, and are not looked at later, either, which would take 0.1 s in the middle of a
    run, and more when the process ends.
    """
    if "torch" in sys.modules:
        return import_module(module)
    enabled = gc.isenabled()
    gc.disable()
    try:
        found = import_module(module)
    finally:
        if enabled:
            gc.enable()
    gc.freeze()
    return found


def __dir__():
    return sorted(__all__)
