"""Edge vector -> spherical harmonics, Bessel basis, polynomial cutoff."""
