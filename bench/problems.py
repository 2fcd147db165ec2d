"""Named problems of the tensor-product convolution, shared by benchmarks and tests."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import vesin
from ase import Atoms
from ase.build import bulk, molecule
from fastlr.kernels.adjacency import Adjacency
from fastlr.kernels.irreps import Irreps
from fastlr.kernels.tensor_product.program import Program


@dataclass(frozen=True)
class Problem:
    """A convolution on a graph of real structures.

    Attributes:
        signature: irreps of the nodes, of the edges, and of the outputs wanted.
        graph: makes (2, E) destinations and sources, sorted, and the number of nodes. Some take a limit of the number
            of edges, and are then smaller.
    """

    name: str
    about: str
    signature: tuple[str, str, str]
    graph: Callable[..., tuple[torch.Tensor, int]]

    @property
    def program(self) -> Program:
        return Program(*self.signature)

    def reduced(self) -> Program:
        """The same paths with few channels: odd numbers in place of the multiplicities, unequal where those are."""
        irreps = Irreps(self.signature[0])
        distinct = sorted({mul for mul, _ in irreps})
        small = {mul: 1 + 2 * rank for rank, mul in enumerate(distinct)} if len(distinct) > 1 else {distinct[0]: 3}
        return Program(Irreps([(small[mul], ir) for mul, ir in irreps]), *self.signature[1:])


def neighbours(structures: list[Atoms], cutoff: float) -> tuple[torch.Tensor, int]:
    """Edges of a batch of structures within ``cutoff`` (Å), and the number of atoms."""
    calculator, edges, first = vesin.NeighborList(cutoff=cutoff, full_list=True), [], 0
    for atoms in structures:
        i, j = calculator.compute(atoms.positions, atoms.cell.array, atoms.pbc, quantities="ij")
        edges.append(np.stack([i, j]).astype(np.int64) + first)
        first += len(atoms)
    edge_index = torch.from_numpy(np.concatenate(edges, axis=1))
    return edge_index[:, torch.argsort(edge_index[0], stable=True)], first


@cache
def rock_salt() -> tuple[torch.Tensor, int]:
    """512 atoms of rattled NaCl with their 13,088 shortest edges."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(4)
    atoms.rattle(0.1, seed=0)
    i, j, distances = vesin.NeighborList(cutoff=5.5, full_list=True).compute(
        atoms.positions, atoms.cell.array, atoms.pbc, quantities="ijd"
    )
    chosen = np.sort(np.argsort(distances, kind="stable")[:13_088])
    edge_index = torch.from_numpy(np.stack([i, j])[:, chosen].astype(np.int64))
    return edge_index[:, torch.argsort(edge_index[0], stable=True)], len(atoms)


@cache
def diamond(max_edges: int | None = None) -> tuple[torch.Tensor, int]:
    """1,000 atoms of diamond, a = 3.567 Å, r = 6 Å: 158,000 edges. With a limit, the largest cell that keeps it."""
    fits = [n for n in range(1, 6) if max_edges is None or 158 * 8 * n**3 <= max_edges]
    return neighbours([bulk("C", "diamond", a=3.567, cubic=True).repeat(max(fits, default=1))], 6.0)


@cache
def benzene(max_edges: int | None = None) -> tuple[torch.Tensor, int]:
    """100 molecules of benzene, r = 4 Å, all slightly bent; about 114 edges each. With a limit, fewer molecules."""
    number = 100 if max_edges is None else max(1, min(100, max_edges // 114))
    structures = [molecule("C6H6") for _ in range(number)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    return neighbours(structures, 4.0)


@cache
def liquid_water() -> tuple[torch.Tensor, int]:
    """192 atoms of water at its density, turned at random on a lattice, r = 5 Å."""
    rng, box = np.random.default_rng(0), Atoms(cell=[12.43] * 3, pbc=True)
    for site in np.ndindex(4, 4, 4):
        water = molecule("H2O")
        water.rotate(rng.uniform(0.0, 360.0), rng.normal(size=3))
        water.translate((np.array(site) + 0.5) * 12.43 / 4 - water.positions[0])
        box += water
    return neighbours([box], 5.0)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "nequip-l2-32",
            "NequIP, l_max 2, 32 features, on 512 atoms of NaCl",
            ("32x0e+32x1o+32x2e", "0e+1o+2e", "0e+1o+1e+2e+2o"),
            rock_salt,
        ),
        Problem("nequip-S", "NequIP preset S on diamond", ("128x0e+64x1o", "0e+1o", "0e+1o"), diamond),
        Problem("nequip-M", "NequIP preset M on diamond", ("128x0e+64x1o+32x2e", "0e+1o+2e", "0e+1o+2e"), diamond),
        Problem(
            "nequip-L",
            "NequIP preset L on diamond",
            ("128x0e+64x1o+32x2e+32x3o", "0e+1o+2e+3o", "0e+1o+2e+3o"),
            diamond,
        ),
        Problem("mace-medium", "MACE-MP-0 medium on diamond", ("128x0e+128x1o", "0e+1o+2e+3o", "0e+1o+2e+3o"), diamond),
        Problem(
            "mace-large", "MACE-MP-0 large on diamond", ("128x0e+128x1o+128x2e", "0e+1o+2e+3o", "0e+1o+2e+3o"), diamond
        ),
        Problem(
            "revmd17-l3",
            "NequIP as for revMD17: l_max 3, 64 features of both parities, on 100 molecules of benzene",
            (
                "64x0e+64x0o+64x1e+64x1o+64x2e+64x2o+64x3e+64x3o",
                "0e+1o+2e+3o",
                "0e+0o+1e+1o+2e+2o+3e+3o",
            ),
            benzene,
        ),
        Problem(
            "water-l2",
            "NequIP as for water: l_max 2, 32 features of both parities, on 64 molecules of liquid water",
            ("32x0e+32x0o+32x1e+32x1o+32x2e+32x2o", "0e+1o+2e", "0e+0o+1e+1o+2e+2o"),
            liquid_water,
        ),
    )
}


def inputs(program: Program, num_nodes: int, num_edges: int, dtype=torch.float32, device="cpu", seed: int = 0):
    """Zero-mean random x, Y and w."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, columns, generator=generator, dtype=dtype).to(device)
        for rows, columns in (
            (num_nodes, program.irreps_in.dim),
            (num_edges, program.irreps_edge.dim),
            (num_edges, program.weight_numel),
        )
    ]


def adjacency(problem: Problem, max_edges: int | None = None, device="cpu") -> Adjacency:
    """The graph of a problem, smaller where there is a limit and the problem can be."""
    edge_index, num_nodes = problem.graph(max_edges) if problem.graph in (diamond, benzene) else problem.graph()
    return Adjacency.from_edges(edge_index, num_nodes).to(device)
