"""``fastlr train``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .progress import Stopped


def train(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML) with model, data, loss and training.")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the last checkpoint in the output, with the same settings and data; what may change is "
            "training.max_epochs, max_time, early_stopping and num_workers, and the test set.",
        ),
    ] = False,
    output: Annotated[
        str | None,  # a Path would make the current folder of ""
        typer.Option(metavar="PATH", help="Output directory, new or empty (default: runs/<name of config>)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change a key of the configuration, each once; in YAML."),
    ] = None,
) -> None:
    """Train a model on structures with reference energies, forces, stresses, charges or dipoles.

    Interrupted or killed, the same command with --resume goes on exactly where the last whole epoch ended.
    """
    from fastlr.train import TrainingStopped
    from fastlr.train import train as run

    try:
        run(config, output=output, resume=resume, overrides=overrides, console=Console())
    except TrainingStopped as stop:
        raise Stopped(str(stop), stop.exit_code) from None
