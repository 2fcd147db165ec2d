"""The reference of a model: the same weights in float64, on plain kernels."""

import torch

from fastlr.backends import resolve

from . import build_model


def reference_of(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model in float64 on the CPU, with the kernels of the backend ``reference``, for inference.

    The copy is built without drawing from the global random generator.
    """
    with torch.random.fork_rng(devices=[]):
        exact = build_model(
            model.config.model_copy(update={"dtype": "float64"}), resolve("reference", "cpu", torch.float64)
        )
    exact.load_state_dict(model.state_dict())  # each tensor in the copy's float type
    return exact.eval().requires_grad_(False)
