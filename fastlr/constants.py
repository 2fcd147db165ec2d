"""Physical constants in the units used everywhere: eV, Å, elementary charges."""

COULOMB_CONSTANT = 14.399645478  # e^2 / (4 pi eps0), in eV Å
HARTREE = 27.211386245988  # eV
