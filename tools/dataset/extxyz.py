"""A labelled frame as extended XYZ text."""

import numpy as np


def round_charges(charges, total):
    """Charges in five decimals whose sum is exactly the total charge."""
    exact = np.asarray(charges) * 1e5
    whole = np.round(exact)
    excess = round(total * 1e5 - whole.sum())
    order = np.argsort((whole - exact) * np.sign(excess))
    for k in range(abs(excess)):
        whole[order[k % len(order)]] += np.sign(excess)
    return whole / 1e5


def format_frame(atoms, results, charge, info):
    """One frame of extended XYZ; fewer digits than ASE writes, and read by ase.io.read."""

    def row(values, digits):
        return " ".join(f"{value:.{digits}f}" for value in np.ravel(values))

    fields = ["Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1"]
    if atoms.pbc.any():
        xx, yy, zz, yz, xz, xy = results["stress"]
        fields.insert(0, f'Lattice="{row(atoms.cell[:], 5)}"')
        fields.append(f'stress="{row([xx, xy, xz, xy, yy, yz, xz, yz, zz], 8)}"')
    else:
        fields.append(f'dipole="{row(results["dipole"], 5)}"')
    fields.append(f"energy={results['energy']:.6f} charge={charge}")
    fields += [f"{key}={value}" for key, value in info.items()]
    fields.append('pbc="T T T"' if atoms.pbc.any() else 'pbc="F F F"')
    lines = [str(len(atoms)), " ".join(fields)]
    charges = round_charges(results["charges"], charge)
    for symbol, x, f, q in zip(atoms.get_chemical_symbols(), atoms.positions, results["forces"], charges, strict=True):
        lines.append(f"{symbol} {row(x, 5)} {row(f, 5)} {q:.5f}")
    return "\n".join(lines) + "\n"
