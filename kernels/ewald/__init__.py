"""Coulomb interaction of Gaussian charges: isolated molecules and cells periodic in three directions."""
