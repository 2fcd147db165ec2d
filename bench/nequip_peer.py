"""Models of the ``nequip`` package (0.19) as contestants: as built, and as ``nequip-compile`` compiles them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from ase import Atoms
from torch import Tensor

from fastlr.numerics import relative_rms

# Libraries of kernels that the package knows: what is imported, and the name of the modification.
KERNELS = {
    "cuequivariance": ("cuequivariance_ops_torch", "enable_CuEquivariance"),
    "openequivariance": ("openequivariance", "enable_OpenEquivariance"),
}


def nequip_model(species: list[str], r_max: float, avg_num_neighbors: float, **options):
    """A model of the ``nequip`` package in float32 with random weights (seed 0)."""
    from nequip.model.nequip_models import NequIPGNNModel

    return _made(NequIPGNNModel, species, r_max, avg_num_neighbors, **options)


def nequip_preset(preset: str, species: list[str], r_max: float, avg_num_neighbors: float):
    """The same of a size that the package has a name for: S, M, L or XL."""
    from nequip.model.nequip_models import PresetNequIPGNNModel

    return _made(PresetNequIPGNNModel, species, r_max, avg_num_neighbors, preset=preset)


def _made(make: Callable, species: list[str], r_max: float, avg_num_neighbors: float, **options):
    from nequip.utils.global_state import set_global_state

    options |= {"r_max": r_max, "type_names": species, "avg_num_neighbors": avg_num_neighbors}
    with _float64():
        set_global_state()  # which sets PyTorch's default type, too
        return make(seed=0, model_dtype="float32", **options)


@contextmanager
def _float64():
    """PyTorch's default type, as nequip wants it while it makes models, data and compiled models."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def differences(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], num_atoms: int) -> dict[str, float]:
    """Of energies and forces: in eV an atom, and relative root-mean-square ones."""
    return {
        "energy_eV_per_atom": float((found[0] - expected[0]).abs().sum() / num_atoms),
        "forces": relative_rms(found[1], expected[1]),
    }


def with_kernels(model, library: str):
    """A copy of the model with a library of kernels in its convolutions.

    Raises:
        ImportError: the library is not installed.
    """
    from nequip.model.modify_utils import modify

    module, modifier = KERNELS[library]
    if find_spec(module) is None:
        raise ImportError(f"{module} is not installed")
    with _float64():
        return modify(copy.deepcopy(model), [{"modifier": modifier}])


def nequip_data(atoms: Atoms, species: list[str], r_max: float, device: str = "cpu") -> dict[str, Tensor]:
    """A structure as the package takes it, with its neighbour list."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    with _float64():
        data = ChemicalSpeciesToAtomTypeMapper(model_type_names=species)(from_ase(atoms))
        return AtomicDataDict.to_(AtomicDataDict.with_batch_(NeighborListTransform(r_max=r_max)(data)), device)


def compiled(model, data: dict[str, Tensor], device: str = "cpu") -> Callable[[dict], dict]:
    """The model compiled by AOTInductor for single structures of any size, the ``ase`` target of ``nequip-compile``."""
    from nequip.nn.compile import DictInputOutputWrapper
    from nequip.scripts._compile_utils import ASE_TARGET, single_frame_batch_map_settings
    from nequip.utils.aot import aot_export_model

    with _float64(), tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.nequip.pt2")
        inputs, outputs = ASE_TARGET["input"], ASE_TARGET["output"]
        dims = {name: torch.export.Dim(f"num_{name}s", min=2) for name in ("node", "edge")}
        aot_export_model(
            model=model,
            device=device,
            input_fields=inputs,
            output_fields=outputs,
            data=ASE_TARGET["data_settings"](dict(data)),
            batch_map=single_frame_batch_map_settings({"graph": None, **dims}),
            output_path=path,
        )
        return DictInputOutputWrapper(torch._inductor.aoti_load_package(path), inputs, outputs)
