"""The card: the README that describes the data set, with counts and ranges from its frames."""

import importlib.metadata
import math

import ase
import numpy as np

from .labels import ACCURACY, METHOD
from .plan import DEFAULT_EQUILIBRATION, DEFAULT_FRAMES, FAMILIES
from .splits import SPLITS


def card(frames, sizes, discarded, args):
    """The README of the data set."""
    everything = [atoms for split in SPLITS for atoms in frames[split]]
    command = f"tools/make_dataset --output DIR --seed {args.seed} --scale {args.scale:g}"
    if sorted(args.families) != sorted(FAMILIES):
        command += f" --families {','.join(args.families)}"
    if args.frames != DEFAULT_FRAMES:
        command += f" --frames {args.frames}"
    if args.equilibration != DEFAULT_EQUILIBRATION:
        command += f" --equilibration {args.equilibration}"
    families = [f for f in FAMILIES if any(a.info["family"] == f for a in everything)]
    lines = [
        f"# {args.name}",
        "",
        "Structures of water, aqueous NaCl, hydroxide and hydronium, labelled with a semi-empirical method.",
        "",
        f"- Level of theory: {METHOD}, tblite {importlib.metadata.version('tblite')}, closed shell, electronic "
        f"temperature 300 K, accuracy {ACCURACY:g}; cells at the Gamma point only",
        f"- Made with: ASE {ase.__version__}, numpy {np.__version__}",
        f"- Remake: `{command}` (seed {args.seed})",
        "- Files: " + ", ".join(f"`{s}.extxyz.xz` ({sizes[s] / 1e6:.2f} MB)" for s in SPLITS),
        "",
        "## Contents",
        "",
        "Frames (atoms) in each split. A trajectory lies wholly in one split.",
        "",
        "| family | trajectories | " + " | ".join(SPLITS) + " |",
        "|---" * (2 + len(SPLITS)) + "|",
    ]
    for family in [*families, "all"]:
        chosen = {s: [a for a in frames[s] if family in ("all", a.info["family"])] for s in SPLITS}
        names = {a.info["trajectory"] for s in SPLITS for a in chosen[s]}
        counts = [f"{len(chosen[s])} ({sum(map(len, chosen[s]))})" for s in SPLITS]
        lines.append(f"| {family} | {len(names)} | " + " | ".join(counts) + " |")
    lines += ["", "## Ranges", ""]
    lines += ["| family | atoms | T (K) | energy per atom (eV) | RMS force (eV/Å) | largest force | charges (e) |"]
    lines += ["|---" * 7 + "|"]
    for family in families:
        some = [a for a in everything if a.info["family"] == family]
        energy = [a.get_potential_energy() / len(a) for a in some]
        force = np.concatenate([a.get_forces() for a in some])
        charge = np.concatenate([a.get_charges() for a in some])
        heat = [a.info["temperature"] for a in some]
        lines.append(
            f"| {family} | {min(map(len, some))} to {max(map(len, some))} | {min(heat)} to {max(heat)} "
            f"| {min(energy):.3f} to {max(energy):.3f} | {math.sqrt((force**2).mean()):.3f} "
            f"| {np.linalg.norm(force, axis=1).max():.2f} | {charge.min():.3f} to {charge.max():.3f} |"
        )
    lines += ["", "Total charges: " + ", ".join(f"{q:+d}" for q in sorted({a.info["charge"] for a in everything}))]
    lines += ["", "Discarded frames:", ""]
    rows = [f"- {f}: {reason}: {n}" for f in families for reason, n in sorted(discarded.get(f, {}).items()) if n]
    lines += rows or ["- none"]
    return "\n".join(lines) + "\n" + CARD_TEXT


CARD_TEXT = """
## Families

- `water-cluster`: 1 to 12 waters.
- `ion-cluster`: 1 to 10 waters with up to two Na+ and two Cl-, total charge -2 to +2.
- `proton-cluster`: one H3O+ or OH-, sometimes with Cl- or Na+, and 0 to 9 waters.
- `scaled`: single points. Structures of a classical water model, all distances or those between molecules scaled by
  0.92 to 1.10, half of them sheared at random, atoms displaced by 0.02 to 0.12 Å; clusters and cells.
- `pair-scan`: two molecules or ions pulled apart from close contact to about 8 Å (temperature 0). Only in the
  training split, since each pair is scanned once or twice and a held-out one would be a pair never seen. Neutral pairs
  of ions far apart are beyond a closed-shell reference; these frames are there for the close contacts.
- `contact`: single points. Clusters of up to 6 molecules and small cells from a classical model, in which one molecule
  was turned at random and pushed against another until their closest atoms were at 0.45 to 0.95 of touching: the
  repulsive walls, seen from every side.
- `water-box`: periodic cells of 8 to 16 waters, 0.85 to 1.30 g/cm3, cubic, orthorhombic and triclinic.
- `ion-box`: periodic cells of 1 to 3 NaCl and 7 to 20 waters; rock salt and molten-like NaCl of 64 atoms (single
  points of a classical model, scaled by 0.95 to 1.06).
- `proton-box`: periodic cells of one H3O+ and Cl-, or one OH- and Na+, with 7 to 15 waters.
- `large-box`: 48 and 64 waters with two NaCl, only in the test split.

Except for `scaled`, `pair-scan`, `contact` and pure NaCl, frames come from Langevin dynamics with the labelling method
(1 fs steps, hydrogen of 2 amu), started from packings that a classical water model equilibrated. Clusters were kept
together by a weak wall, which is not part of the labels. Frames were discarded when the SCF failed, when a value was
not finite, when a force exceeded 25 eV/Å, and in families from dynamics without protons or hydroxide when an O-H bond
was longer than 1.5 Å.

## Columns and units

Extended XYZ compressed with xz; `ase.io.read("train.extxyz.xz", index=":")` reads it.

| name | where | unit |
|---|---|---|
| `pos` | atoms | Å |
| `forces` | atoms | eV/Å |
| `charges` | atoms, Mulliken charges; they sum to `charge` | e |
| `energy` | frame, includes the electronic entropy term | eV |
| `stress` | frame, cells only; ASE's sign (positive when the cell wants to shrink) | eV/Å3 |
| `dipole` | frame, molecules only, about the origin, which is the centre of mass; with the atoms' own dipoles | e Å |
| `charge` | frame, integer total charge | e |
| `family`, `trajectory` | frame | |
| `temperature` | frame, of the thermostat | K |

Labels belong to the stored positions, which were rounded before the calculation. The charges alone give about two
thirds of the dipole of a water molecule; the rest is the polarisation of the atoms, which `dipole` includes.

## Limits

- A semi-empirical level of theory: it is not a substitute for density functional or wave function data, and its
  water differs from real water in density and structure.
- Only H, O, Na and Cl; closed shells only, so no radicals and no bond breaking into neutral atoms.
- Cells use the Gamma point only. Doubling a cell of 8 waters changes its energy by less than 1 meV per atom and its
  forces by less than 0.02 eV/Å (0.05 eV/Å with two NaCl).
- The method's water is denser than real water: at 1 g/cm3 and 300 K its pressure is about -0.5 GPa.
- No cells with a net charge: the reference method gives no meaningful energy for them, as it lacks the term of a
  neutralising background. H3O+ and OH- therefore come with a counter-ion in cells.
- Trajectories are short (well below a picosecond), so slow collective structure is sampled only through the number
  of independent packings. No interfaces, ice, gas-liquid coexistence or pressures far from those of the densities
  above.
"""
