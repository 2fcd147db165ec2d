"""Options of tools/demo, with nothing but Python's own library, for they are looked at before anything is installed."""

import argparse


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options by name; exits on a wrong one and for help."""
    description = "Molecular dynamics of salt water with a bundled model; leaves a trajectory, a summary and a picture."
    parser = argparse.ArgumentParser(prog="tools/demo", description=description)
    parser.add_argument("--model", default="aqueous-xtb", help="bundled model or model file")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--steps", type=int, default=1000, help="NVE steps of 0.5 fs")
    parser.add_argument("--equilibration", type=int, default=300, help="Langevin steps of 0.5 fs")
    parser.add_argument("--interval", type=int, default=5, help="steps between frames")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs/salt-water")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    parser.add_argument("--prepare", action="store_true", help="make the starting box again, then stop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()
