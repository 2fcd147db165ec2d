"""The classical model, used only to equilibrate packings: flexible SPC-like water and Joung-Cheatham-like ions."""

import math

import numpy as np
from ase import units
from scipy.special import erfc

from .molecules import symbols_of

KCAL = units.kcal / units.mol

ATOM_CHARGES = {
    "H2O": [-0.82, 0.41, 0.41],
    "H3O": [-0.62, 0.54, 0.54, 0.54],
    "OH": [-1.30, 0.30],
    "Na": [1.0],
    "Cl": [-1.0],
}

LENNARD_JONES = {  # epsilon (kcal/mol), sigma (Å); a small core on H keeps it off bare anions
    "O": (0.1554, 3.166),
    "H": (0.0100, 0.800),
    "Na": (0.3526, 2.160),
    "Cl": (0.0128, 4.830),
}


class ClassicalModel:
    """Forces of flexible point-charge molecules; Coulomb by the damped shifted force, so cells need no Ewald sum."""

    REBUILD = 10  # evaluations between new pair lists
    SKIN = 0.6  # Å

    def __init__(self, molecules, owner, cell):
        self.cell, self.owner = cell, owner
        self.charges = np.array([q for name in molecules for q in ATOM_CHARGES[name]])
        table = np.array([LENNARD_JONES[s] for s in symbols_of(molecules)])
        self.epsilon, self.sigma = table[:, 0] * KCAL, table[:, 1]
        self.cutoff, self.damping = (1e3, 0.0) if cell is None else (6.5, 0.25)
        self.count = 0
        self.bonds, self.angles = [], []
        for number, name in enumerate(molecules):
            atoms = np.flatnonzero(owner == number)
            hydrogens = atoms[1:]
            self.bonds += [(atoms[0], h) for h in hydrogens]
            theta = 111.0 if name == "H3O" else 105.0
            self.angles += [(a, atoms[0], b, theta) for k, a in enumerate(hydrogens) for b in hydrogens[k + 1 :]]

    def build_pairs(self, x):
        i, j = np.triu_indices(len(x), k=1)
        if self.cell is None:
            keep = self.owner[i] != self.owner[j]
            self.i, self.j, self.offset = i[keep], j[keep], 0.0
        else:
            heights = 1 / np.linalg.norm(np.linalg.inv(self.cell), axis=0)
            reach = np.ceil((self.cutoff + self.SKIN) / heights - 0.5).astype(int)
            shifts = np.array(list(np.ndindex(*(2 * reach + 1)))) - reach
            delta = x[j] - x[i]
            base = -np.round(delta @ np.linalg.inv(self.cell))
            image = base[:, None, :] + shifts[None, :, :]
            distance = np.linalg.norm(delta[:, None, :] + image @ self.cell, axis=2)
            inside = (self.owner[i] == self.owner[j])[:, None] & ~image.any(axis=2)
            pair, which = np.nonzero((distance < self.cutoff + self.SKIN) & ~inside)
            self.i, self.j, self.offset = i[pair], j[pair], image[pair, which] @ self.cell
        i, j = self.i, self.j
        self.qq = self.charges[i] * self.charges[j] * units.Hartree * units.Bohr
        self.eps_ij = np.sqrt(self.epsilon[i] * self.epsilon[j])
        self.sig_ij = (self.sigma[i] + self.sigma[j]) / 2

    def coulomb_slope(self, r):
        a = self.damping
        return erfc(a * r) / r**2 + 2 * a / math.sqrt(math.pi) * np.exp(-((a * r) ** 2)) / r

    def __call__(self, x):
        """Forces (eV/Å) at positions x."""
        if self.count % self.REBUILD == 0:
            self.build_pairs(x)
        self.count += 1
        force = np.zeros_like(x)
        delta = x[self.j] - x[self.i] + self.offset
        r = np.maximum(np.linalg.norm(delta, axis=1), 0.3)
        near = r < self.cutoff
        s6 = (self.sig_ij / np.maximum(r, 0.5 * self.sig_ij)) ** 6
        push = 24 * self.eps_ij * (2 * s6**2 - s6) / r
        push += self.qq * (self.coulomb_slope(r) - self.coulomb_slope(self.cutoff))
        pair_force = (near * push / r)[:, None] * delta
        np.add.at(force, self.j, pair_force)
        np.subtract.at(force, self.i, pair_force)
        if self.bonds:
            o, h = np.array(self.bonds).T
            bond = x[h] - x[o]
            length = np.linalg.norm(bond, axis=1)
            pull = (-1059.162 * KCAL * (length - 0.97) / length)[:, None] * bond
            np.add.at(force, h, pull)
            np.subtract.at(force, o, pull)
        for a, o, b, theta0 in self.angles:
            u, v = x[a] - x[o], x[b] - x[o]
            lu, lv = np.linalg.norm(u), np.linalg.norm(v)
            cosine = np.clip(u @ v / (lu * lv), -0.9999, 0.9999)
            moment = 75.9 * KCAL * (math.acos(cosine) - math.radians(theta0)) / math.sqrt(1 - cosine**2)
            fa = moment * (v / lv - cosine * u / lu) / lu
            fb = moment * (u / lu - cosine * v / lv) / lv
            force[a] += fa
            force[b] += fb
            force[o] -= fa + fb
        return force
