"""Measures of how far numbers are from what they should be."""

import torch


def relative_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    """|value - reference| / |reference| in the 2-norm; the absolute error where the reference is zero or empty."""
    reference = reference.double()
    scale = torch.linalg.vector_norm(reference)
    error = torch.linalg.vector_norm(value.double().to(reference.device) - reference)
    return float(error / scale) if scale > 0 else float(error)
