"""Model files of other packages, known by their names: what to do with them instead of loading them."""

from pathlib import Path

# what takes a NequIP model over: nequip's functions open its own files, fastlr's reads the module that comes of it
NEQUIP_STATE = "nequip.utils.global_state.set_global_state"
NEQUIP_LOADER = "nequip.model.saved_models.load_saved_model"
NEQUIP_IMPORTER = "fastlr.interop.nequip.from_nequip"

_COMPILED = "it is a compiled model, whose weights cannot be taken over; "
_HINTS = {
    ".nequip.zip": "it is a package of nequip; {take}",
    ".ckpt": "it is a checkpoint of training; fastlr's leave model.safetensors beside it; for nequip's, {take}",
    ".pt2": _COMPILED + "for one by nequip, go back to its package (.nequip.zip) or checkpoint (.ckpt), and {take}",
    ".pth": _COMPILED + "for one by nequip, go back to its package (.nequip.zip) or checkpoint (.ckpt), and {take}",
    ".pt": "it is a PyTorch pickle, which fastlr never opens; for a model of nequip, {take}",
    ".model": "it is a PyTorch pickle, which fastlr never opens; there are no MACE models in fastlr",
}


def advice(path: str | Path) -> str | None:
    """What to do with a file that is no model file of fastlr, by its name; None for names of no other package."""
    take = f"call {NEQUIP_STATE}(), and pass what {NEQUIP_LOADER}('{path}') returns to {NEQUIP_IMPORTER}"
    return next((text.format(take=take) for ending, text in _HINTS.items() if str(path).endswith(ending)), None)
