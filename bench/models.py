"""Whole models: energies and forces beside the ``nequip`` package, and training steps of one backend beside another."""

from collections.abc import Callable

import torch
from ase import Atoms
from ase.build import bulk

from fastlr.backends import resolve
from fastlr.graph import Graph
from fastlr.models import build_model, parse_config
from fastlr.models.derivatives import evaluate
from fastlr.models.tables import tabulate
from fastlr.numerics import relative_rms
from fastlr.potential import Potential, coulomb_settings

from .nequip_peer import nequip_data, nequip_model
from .timing import alternate

SPECIES = ["Na", "Cl"]
NEQUIP = {"num_layers": 3, "l_max": 2, "parity": True, "num_features": 32}
NEQUIP_LR = {"kind": "nequip-lr", "species": SPECIES, "r_max": 5.0, "l_max": 2, "parity": True,
             "num_features": 32, "num_charge_layers": 1, "num_layers": 2, "avg_num_neighbors": 26.0}  # fmt: skip


def rock_salt(repeat: int = 4) -> Atoms:
    """8 repeat^3 atoms of rattled NaCl."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    return atoms


def nequip_inference(repeat: int = 4, r_max: float = 5.0, seconds: float = 10.0, say: Callable = print) -> dict:
    """Energy and forces of NaCl by ``nequip`` and by each CPU backend with the same weights; neighbour list given.

    Both sides evaluate energy, forces and stress, checked to 1e-5 in float32.
    """
    from fastlr.interop.nequip import from_nequip

    atoms = rock_salt(repeat)
    model, data = nequip_model(SPECIES, r_max, 26.0, **NEQUIP), nequip_data(atoms, SPECIES, r_max)

    def by_nequip():
        out = model(dict(data))
        return out["total_energy"].detach(), out["forces"].detach()

    runs, errors = {"nequip": by_nequip}, {}
    energy, forces = by_nequip()
    for backend in ("reference", "cpu"):
        potential = from_nequip(model)
        potential.use(backend)
        run = evaluator(potential, potential.graph(atoms))
        ours = run()
        errors[backend] = {
            "energy_eV_per_atom": float((ours["energy"] - energy.flatten()).abs() / len(atoms)),
            "forces": relative_rms(ours["forces"], forces),
        }
        if errors[backend]["forces"] > 1e-5:
            say(f"  {backend}: NOT TIMED, forces differ by {errors[backend]['forces']:.1e}")
            continue
        runs[f"fastlr {backend}"] = run
    times = {"energy, forces, stress": alternate(runs, seconds=seconds)}
    return {
        "problem": f"NequIP 3 layers, l_max 2, 32 features, r {r_max:g} Å",
        "nodes": len(atoms),
        "edges": int(data["edge_index"].shape[1]),
        "errors": errors,
        "times": times,
    }


def nequip_lr_inference(repeat: int = 4, seconds: float = 10.0, say: Callable = print) -> dict:
    """Energy, forces and stress of NaCl by NequIP-LR and each CPU backend, beside ``nequip`` with NequIP.

    The ``nequip`` package has no charges: its contestant is its own model with as many layers of the same size, which
    has less to do. The backends are checked against each other to 1e-5 in float32.
    """
    atoms = rock_salt(repeat)
    r_max = NEQUIP_LR["r_max"]
    model, data = nequip_model(SPECIES, r_max, 26.0, **NEQUIP), nequip_data(atoms, SPECIES, r_max)
    runs, errors = {"nequip (NequIP, without charges)": lambda: model(dict(data))["forces"].detach()}, {}
    expected = None
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        potential = Potential(build_model(parse_config(NEQUIP_LR)), backend=backend)
        run = evaluator(potential, potential.graph(atoms))
        out = run()
        expected = expected or out
        errors[backend] = {
            "energy_eV_per_atom": float((out["energy"] - expected["energy"]).abs().sum() / len(atoms)),
            **{key: relative_rms(out[key], expected[key]) for key in ("forces", "charges", "stress")},
        }
        if errors[backend]["forces"] > 1e-5:
            say(f"  {backend}: NOT TIMED, forces differ by {errors[backend]['forces']:.1e}")
            continue
        runs[f"fastlr {backend}"] = run
    layers = f"{NEQUIP_LR['num_charge_layers']} + {NEQUIP_LR['num_layers']} layers"
    return {
        "problem": f"NequIP-LR {layers}, l_max 2, 32 features, r {NEQUIP_LR['r_max']:g} Å",
        "nodes": len(atoms),
        "edges": int(data["edge_index"].shape[1]),
        "errors": errors,
        "times": {"energy, forces, stress": alternate(runs, seconds=seconds)},
    }


def evaluator(potential: Potential, graph) -> Callable[[], dict]:
    """Energy, forces and stress of a graph by the potential's plan or, where there is none, by autograd."""
    if potential.plan is not None:
        return lambda: potential.plan.evaluate(graph)
    return lambda: evaluate(potential.model, graph)


def training_step(config: dict = NEQUIP_LR, repeat: int = 2, copies: int = 4, seconds: float = 10.0) -> dict:
    """One training step (energy, forces, charges; gradients of all weights) by the backends ``reference`` and ``cpu``,
    the latter with its radial networks from tables, as ``fastlr train`` does it, and evaluated at every edge.

    The gradients are checked to 1e-5 in float32.
    """
    graphs, parsed = [], parse_config(config)
    for seed in range(copies):
        atoms = rock_salt(repeat)
        atoms.rattle(0.05, seed=seed)
        graphs.append(Graph.single(atoms, parsed.species, parsed.r_max, coulomb_settings(parsed), index=seed))
    graph = Graph.batch_of(graphs)
    target = torch.randn(graph.num_nodes, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs, gradients, table = {}, {}, None
    for name, backend in (("reference", "reference"), ("cpu", "cpu"), ("cpu, no tables", "cpu")):
        torch.manual_seed(0)
        model = build_model(parsed, resolve(backend, dtype=parsed.torch_dtype))
        weights = list(model.parameters())
        if name == "cpu":
            table = tabulate(model)

        def step(model=model, weights=weights):
            model.zero_grad()
            out = evaluate(model, graph, create_graph=True)
            loss = (out["energy"] ** 2).mean() + ((out["forces"] - target) ** 2).sum()
            if "charges" in out:
                loss = loss + (out["charges"] ** 2).sum()
            loss.backward(inputs=weights)
            return loss

        step()
        gradients[name] = torch.cat([p.grad.flatten().double() for p in weights if p.grad is not None])
        runs[name] = step
    errors = {name: relative_rms(gradients[name], gradients["reference"]) for name in runs if name != "reference"}
    if max(errors.values()) > 1e-5:
        raise AssertionError(f"gradients differ from the reference: {errors}")
    return {
        "problem": f"training step, {config['kind']}, {copies} x {8 * repeat**3} atoms of NaCl",
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "table_intervals": table and table[0],
        "errors": {name: {"gradient of all weights": error} for name, error in errors.items()},
        "times": {"step": alternate(runs, seconds=seconds)},
    }
