"""Model files of other packages, known by their names: what to do with them instead of loading them."""

from pathlib import Path

# what takes a NequIP model over: nequip's functions open its own files, fastlr's reads the module that comes of it
NEQUIP_STATE = "nequip.utils.global_state.set_global_state"
NEQUIP_LOADER = "nequip.model.saved_models.load_saved_model"
NEQUIP_IMPORTER = "fastlr.interop.nequip.from_nequip"

_SOURCE = "for one by nequip, go back to its package (.nequip.zip) or checkpoint (.ckpt); {take}"
_COMPILED = f"it is a compiled model, whose weights cannot be taken over; {_SOURCE}"
_HINTS = {
    ".nequip.zip": "it is a package of nequip; {take}",
    ".ckpt": "it is a checkpoint of training; fastlr's leave model.safetensors beside it; for one by nequip, {take}",
    ".pt2": _COMPILED,
    ".pth": _COMPILED,
    ".pt": f"it is a PyTorch pickle, which fastlr never opens; {_SOURCE}",
    ".model": "it is a PyTorch pickle, which fastlr never opens; there are no MACE models in fastlr",
}


def advice(path: str | Path) -> str | None:
    """What to do with a file that is no model file of fastlr, by its name; None for names of no other package."""
    ending = next((ending for ending in _HINTS if str(path).endswith(ending)), None)
    if ending is None:
        return None
    opened = f"'{path}'" if ending in (".nequip.zip", ".ckpt") else "its path"
    take = f"call {NEQUIP_STATE}(), and pass what {NEQUIP_LOADER}({opened}) returns to {NEQUIP_IMPORTER}"
    return _HINTS[ending].format(take=take)
