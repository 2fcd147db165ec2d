"""Functions of the distance from tables: rows of weights for each edge, interpolated between knots."""
