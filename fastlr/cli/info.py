"""fastlr info: what a model is."""

from typing import Annotated

import typer


def info(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Bundled model or .safetensors file.", show_default=False)
    ] = None,
) -> None:
    """Describe a model; without one, list those that come with fastlr."""
    from rich.console import Console

    console = Console()
    if model is None:
        _list_models(console)
    else:
        _describe(console, model)


def _list_models(console) -> None:
    import fastlr
    from fastlr.checkpoint import read_header
    from fastlr.pretrained import model_path

    from .tables import plain_table

    names = fastlr.available_models()
    if not names:
        console.print("no models come with this installation")
        return
    table = plain_table("model", "kind", "species", "cutoff")
    for name in names:
        config, _ = read_header(model_path(name))
        table.add_row(name, config.kind, " ".join(config.species), f"{config.r_max:g} Å")
    console.print(table)
    console.print("'fastlr info MODEL' tells more of one", highlight=False)


def _describe(console, model: str) -> None:
    from rich.text import Text

    import fastlr
    from fastlr.checkpoint import CONVENTIONS, UNITS

    potential = fastlr.load(model, device="cpu", backend="reference")
    parameters = sum(parameter.numel() for parameter in potential.model.parameters())
    config = potential.config.model_dump()
    kind, species = config.pop("kind"), config.pop("species")
    summary = {
        "kind": kind,
        "species": " ".join(species),
        "parameters": f"{parameters:,}",
        "predicts charges": "yes" if potential.has_charges else "no",
    }
    for title, content in (
        (potential.name, summary),
        ("units", UNITS),
        ("conventions", CONVENTIONS),
        ("configuration", config),
        ("model card", potential.card or {"": "(none)"}),
    ):
        console.print(Text(title, style="bold"), soft_wrap=True)  # which a long path does not widen
        console.print(_section(content))


def _section(content: dict):
    """Nested data as an indented two-column table."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")

    def add(values: dict, depth: int) -> None:
        for key, value in values.items():
            label = Text("  " * depth + str(key).replace("_", " "))
            if isinstance(value, dict) and value:
                grid.add_row(label, "")
                add(value, depth + 1)
            else:
                grid.add_row(label, Text(_text(value)))

    add(content, 1)
    grid.add_row("", "")
    return grid


def _text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return str(value)
