"""Models of the ``nequip`` package (0.19) as contestants: as built, and as ``nequip-compile`` compiles them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import torch
from ase import Atoms
from torch import Tensor


def nequip_model(species: list[str], r_max: float, avg_num_neighbors: float, **options):
    """A model of the ``nequip`` package in float32 with random weights (seed 0)."""
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    default = torch.get_default_dtype()
    set_global_state()
    torch.set_default_dtype(torch.float64)  # as nequip wants it while a model is built
    try:
        options |= {"r_max": r_max, "type_names": species, "avg_num_neighbors": avg_num_neighbors}
        return NequIPGNNModel(seed=0, model_dtype="float32", **options)
    finally:
        torch.set_default_dtype(default)


def nequip_data(atoms: Atoms, species: list[str], r_max: float) -> dict[str, Tensor]:
    """A structure as the package takes it, with its neighbour list."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        data = ChemicalSpeciesToAtomTypeMapper(model_type_names=species)(from_ase(atoms))
        return AtomicDataDict.with_batch_(NeighborListTransform(r_max=r_max)(data))
    finally:
        torch.set_default_dtype(default)


def compiled(model, data: dict[str, Tensor]) -> Callable[[dict], dict]:
    """The model compiled by AOTInductor for single structures of any size, the ``ase`` target of ``nequip-compile``."""
    from nequip.nn.compile import DictInputOutputWrapper
    from nequip.scripts._compile_utils import ASE_TARGET, single_frame_batch_map_settings
    from nequip.utils.aot import aot_export_model

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.nequip.pt2")
            inputs, outputs = ASE_TARGET["input"], ASE_TARGET["output"]
            dims = {name: torch.export.Dim(f"num_{name}s", min=2) for name in ("node", "edge")}
            aot_export_model(
                model=model,
                device="cpu",
                input_fields=inputs,
                output_fields=outputs,
                data=ASE_TARGET["data_settings"](dict(data)),
                batch_map=single_frame_batch_map_settings({"graph": None, **dims}),
                output_path=path,
            )
            return DictInputOutputWrapper(torch._inductor.aoti_load_package(path), inputs, outputs)
    finally:
        torch.set_default_dtype(default)
