"""Whole interaction layers for inference: convolution with tabulated weights, node update, and the way back."""
