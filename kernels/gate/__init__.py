"""The gate nonlinearity: scalars are activated, and other irreps scaled by activated scalars."""
