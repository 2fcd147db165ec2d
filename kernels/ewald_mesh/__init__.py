"""The reciprocal part of the Coulomb sum on a mesh: charges are spread by B-splines, convolved by FFT, and gathered."""
